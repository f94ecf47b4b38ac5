"""What every part builds on: settings, checks of arguments, text for people, files, and locks that survive a fork."""
