"""Personal models: what training has made for one client, taken home.

model.py    a personal model and its predictions
folder.py   the folder that holds it: safetensors and JSON
folds.py    temperature and threshold, from the client's training images
export.py   from a finished run, or from a site's state, to a personal model
card.py     the model card
merge.py    a plain CLIP, where the changes can be added to its weights
onnx.py     one graph of images to the trained classes
"""
