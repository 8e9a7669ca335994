"""The report of a sweep: a verdict in words, a table of its arms, and one HTML page that needs no network."""

from unlock_lens.evidence.report.judgement import Verdict, verdict
from unlock_lens.evidence.report.page import summary, write
from unlock_lens.evidence.report.paper import beside_the_paper
from unlock_lens.evidence.report.paragraphs import specificity
from unlock_lens.evidence.report.short import evidence

__all__ = ["Verdict", "beside_the_paper", "evidence", "specificity", "summary", "verdict", "write"]
