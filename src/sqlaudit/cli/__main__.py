"""``python -m sqlaudit.cli`` is the command ``sqlaudit``."""

from sqlaudit.cli import main

main()
