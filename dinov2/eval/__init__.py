"""Evaluation of a frozen backbone on classification data sets: weighted k-NN and linear probing, as official DINOv2 does them."""
