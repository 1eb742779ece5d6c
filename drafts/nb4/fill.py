def words(n):
    return {'00':'about half a minute','01':'about 3 minutes','02':'about 4 minutes','03':'under a minute','04':'about 7 minutes','05':'some minutes','06':'some minutes','90':'under a minute'}[n[:2]]
