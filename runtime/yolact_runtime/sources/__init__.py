"""Sources of frames: image files, lists of paths, videos and cameras."""
