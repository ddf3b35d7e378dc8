"""The demo's real scans; source and licence in LICENCE.md beside this file."""
