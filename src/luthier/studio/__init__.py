"""The studio: the whole way in a browser, offline, over the same runs, queue and services as the commands."""
