"""What the command prints and draws. Only `cli` imports this room."""
