PLANTED={}
def draw(rng): return None
def plant(s,t): return s
