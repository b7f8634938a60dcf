"""The parts of app.py's page; they may import everything, and only app.py imports them."""
