"""`python -m ornstein` is the `ornstein` command."""

from .cli.main import main

raise SystemExit(main())
