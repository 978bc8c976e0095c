"""What the scripts in tools/ share: arguments, checks, the Runner."""
