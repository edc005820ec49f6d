"""Report what a model costs: the same as `pcl-clora report cost`.

Example: python tools/report_cost.py --config cfgs/scanobjectnn/hardest_clora.yaml --json
"""

import sys

from pcl_clora.cli import main

if __name__ == "__main__":
    main(["report", "cost", *sys.argv[1:]], prog_name="tools/report_cost.py")
