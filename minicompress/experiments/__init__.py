"""What the command prints and draws. Only `cli` imports this room."""

__all__: list[str] = []
