"""Methods that monai_jsm is measured against, one file each."""
