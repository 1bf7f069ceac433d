"""Find protein particles in cryo-EM micrographs by segmentation, detection or template matching.

A micrograph is a noisy projection image of thousands of frozen molecules. The program enhances its contrast, labels
every pixel as background, protein, ice or carbon (semantic segmentation, as CASSPER does), and turns the protein map
into particle centres in the files that RELION, EMAN and crYOLO read. Reading order: simulate, formats, data, enhance,
picking, crops, network, template, detection, evaluate, classify, study.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "picker.safetensors"
"""The picker that comes with the program: any particle, given its diameter (MODEL_CARD.md)."""

CLASSES = ("background", "protein", "ice", "carbon")
"""Names of the labels 0..3 in every mask; 255 means unlabelled."""
