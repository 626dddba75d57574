"""Conversations and preference pairs from a teacher: asked, checked, kept."""
