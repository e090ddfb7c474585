"""Transcripts: what programs that cannot run everywhere were asked, and what they said."""
