"""What a run leaves for people to read: its HTML report and its model card."""

from smollm3.report.card import model_card
from smollm3.report.html import write_report

__all__ = ["model_card", "write_report"]
