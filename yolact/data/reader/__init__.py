"""Reads annotation files as other people's tools write them; `yolact.data.annotations` is the interface."""
