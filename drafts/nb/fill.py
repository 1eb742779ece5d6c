def words(n):
    if n.startswith("04"):
        return "about 7 minutes"
    if n.startswith("03"):
        return "under a minute"
    return "not yet; some minutes once its models are trained"
