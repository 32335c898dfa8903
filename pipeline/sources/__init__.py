"""Where images come from: a folder or glob, WebDataset tars, or Parquet; local or remote. Every source becomes the same records."""

from pipeline.sources.fetch import Fetcher
from pipeline.sources.listing import Selection
from pipeline.sources.record import Part, SourceRecord
from pipeline.sources.scan import Scan, scan

__all__ = ["Fetcher", "Part", "Scan", "Selection", "SourceRecord", "scan"]
