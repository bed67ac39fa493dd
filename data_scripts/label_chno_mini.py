"""Label the molecules of a plan (chno_mini.yaml by default) into a labelling store; stop and rerun at any time.

python data_scripts/label_chno_mini.py --out chno-mini/labels.sqlite --workers 2 --hours 2

``mfm label PLAN --out STORE`` does the same with more options.
"""

import argparse
import logging
from pathlib import Path

from mfm.labelling.plan import read_plan
from mfm.labelling.prepare import queue_plan
from mfm.labelling.run import label
from mfm.labelling.store import LabelStore


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, default=Path(__file__).parent / "chno_mini.yaml")
    parser.add_argument("--out", type=Path, required=True, help="labelling store; resumed if it exists")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--hours", type=float, default=2.0, help="no label is started after this time")
    parser.add_argument("--coretype", default="", help="OPENBLAS_CORETYPE of the workers; measure before setting it")
    parser.add_argument("--extend", action="store_true", help="add what the plan has and the store's queue lacks")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    store = LabelStore(arguments.out)
    if arguments.extend or not store.fidelities():
        logging.info("%d labels queued", queue_plan(store, read_plan(arguments.plan), arguments.workers))
    environment = {"OPENBLAS_CORETYPE": arguments.coretype} if arguments.coretype else {}
    summary = label(store, store.levels(), arguments.workers, arguments.hours, environment=environment)
    logging.info("%d done, %d failed, %d left in %.0f s", *summary)
    store.close()


if __name__ == "__main__":
    main()
