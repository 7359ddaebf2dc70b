"""Several machines that train together: whom TF_CONFIG names, and how they find each other."""
