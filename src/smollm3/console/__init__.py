"""Models at the terminal: conversations, single answers, the view of a batch."""
