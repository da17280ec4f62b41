"""``python -m lcl_composer``: the command line, where no script ``lcl`` is on the path."""

from lcl_composer.cli import app

if __name__ == "__main__":
    app()
