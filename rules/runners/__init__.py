"""Where an action's command runs, one file each."""
