"""``python -m minicompress``."""

from minicompress.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
