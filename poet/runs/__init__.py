"""Work dirs and folders: what lies in them, who may write, how damage is found."""
