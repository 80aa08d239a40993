"""What people start: the command line, tracking, outputs, pictures, the demo."""
