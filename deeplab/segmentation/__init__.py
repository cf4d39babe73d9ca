"""Images to masks for people who write Python: what `import deeplab` offers, and the options of all that makes masks.

Archives, storage and Ray are pipelines/; the networks and the CRF behind a mask are scoring/ and crf/.
"""
