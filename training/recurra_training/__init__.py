"""Trains recurrent networks, exports them to ONNX, and publishes what is proven to run step by step.

from recurra_training.models import RecurrentNet
from recurra_training.describe import describe
from recurra_training.export import export_onnx
from recurra_training.verify import verify
"""
