"""`python -m statsig_otel` is the command `statsig-otel`."""

from statsig_otel.plugin.cli.main import main

main()
