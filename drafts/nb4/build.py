import sys,re,nbformat
from pathlib import Path
def build(src,dst):
    import fill
    text=re.sub(r"@@(\w+)@@",lambda m: fill.words(m[1]) or m[0],Path(src).read_text()); cells=[]
    for n,chunk in enumerate(re.split(r'^# %%',text,flags=re.M)[1:]):
        head,_,body=chunk.partition('\n'); body=body.strip('\n')
        if '[markdown]' in head: c=nbformat.v4.new_markdown_cell(body)
        else:
            c=nbformat.v4.new_code_cell(body)
            if 'parameters' in head: c.metadata['tags']=['parameters']
        c['id']=f'{Path(dst).stem[:2]}-{n:02d}'; cells.append(c)
    nb=nbformat.v4.new_notebook(cells=cells,metadata={'kernelspec':{'display_name':'omni-lab','language':'python','name':'omni-lab'},'language_info':{'name':'python'}})
    nbformat.write(nb,dst)
for s in sorted(Path('/tmp/nb4').glob('[0-9]*.py')): build(s,f'/tmp/w/r4/notebooks/{s.stem}.ipynb')
