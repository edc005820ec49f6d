"""`python -m pcl_clora.cli` is `pcl-clora`."""

from pcl_clora.cli import main

main()
