"Pictures while a run goes on, in a real notebook: one output, redrawn"
import nbformat
from nbclient import NotebookClient
from common import ROOT

SETUP = """
import sys, warnings
sys.path.insert(0, {root!r})
warnings.filterwarnings('ignore')
from gmml_nb.data import pretrain_dls
from gmml_nb.pretrain import gmml_learner
from gmml_nb.visualise import ShowReconstructions
dls = pretrain_dls('digits', size=8, bs=32, valid_pct=.2, idxs=range(80), device='cpu')
learn = gmml_learner(dls, 'vit_tiny_patch16_224', patch_size=4, model_args=dict(embed_dim=32, depth=2, num_heads=2), blocks=(1, 2), cbs=ShowReconstructions(n=3))
"""
FIT = """
with learn.no_bar(), learn.no_logging(): learn.fit_gmml(3, estimate=False)
"""
PICKLES = """
import pickle
len(pickle.dumps(learn)) > 0
"""


def test_one_output_redrawn(monkeypatch, tmp_path):
    monkeypatch.delenv('MPLBACKEND', raising=False)   # `make test` has no display; a notebook has one of its own
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(o) for o in (SETUP.format(root=str(ROOT)), FIT, PICKLES)])
    client = NotebookClient(nb, timeout=300, kernel_name='python3', resources=dict(metadata=dict(path=str(tmp_path))))
    shown, update = [], client.process_message
    def seen(msg, *args):
        if msg['msg_type'] in ('display_data', 'update_display_data') and 'image/png' in msg['content']['data']:
            shown.append((msg['msg_type'], msg['content']['data']['image/png']))
        return update(msg, *args)
    client.process_message = seen
    client.execute()
    assert [k for k,_ in shown] == ['display_data', 'update_display_data', 'update_display_data']
    assert len({png for _,png in shown}) == 3, 'the picture should follow the weights'
    pictures = [o for o in nb.cells[1].outputs if 'image/png' in o.get('data', {})]
    assert [o.data['image/png'] for o in pictures] == [shown[-1][1]]
    assert nb.cells[2].outputs[0].data['text/plain'] == 'True'
