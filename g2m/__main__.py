"""``python -m g2m``, which is what ``torchrun -m g2m`` starts."""

from g2m.cli import app

if __name__ == "__main__":
    app()
