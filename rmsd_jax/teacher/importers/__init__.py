"""Other projects' training files -> JSON Lines of prompts, one module a format."""
