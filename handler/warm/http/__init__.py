"""The HTTP side: problem documents, deadlines, methods and the documentation pages."""
