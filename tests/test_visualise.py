"Pictures while a run goes on, in a real notebook: one output, redrawn; explorers of any number of channels"
import nbformat, numpy as np, pytest, torch
from nbclient import NotebookClient
from PIL import Image
from gmml_nb.data import finetune_dls, pretrain_dls
from gmml_nb.explore import Explore
from gmml_nb.finetune import finetune_learner
from gmml_nb.pretrain import gmml_learner
from gmml_nb.visualise import images_for, inside, show_attention, show_blocks
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
ONCE = ('learn.show_reconstructions(3)', 'learn.show_reconstructions(3);', 'from gmml_nb.visualise import show_attention\nshow_attention(learn)')
PICKLES = """
import pickle
len(pickle.dumps(learn)) > 0
"""


def test_one_output_redrawn(monkeypatch, tmp_path):
    monkeypatch.delenv('MPLBACKEND', raising=False)   # `make test` has no display; a notebook has one of its own
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(o) for o in (SETUP.format(root=str(ROOT)), FIT, PICKLES, *ONCE)])
    client = NotebookClient(nb, timeout=300, kernel_name='python3', resources=dict(metadata=dict(path=str(tmp_path))))
    shown, update = [], client.process_message
    def seen(msg, *args):
        if msg['msg_type'] in ('display_data', 'update_display_data') and 'image/png' in msg['content']['data']:
            shown.append((msg['msg_type'], msg['content']['data']['image/png']))
        return update(msg, *args)
    client.process_message = seen
    client.execute()
    shown = shown[:3]
    assert [k for k,_ in shown] == ['display_data', 'update_display_data', 'update_display_data']
    assert len({png for _,png in shown}) == 3, 'the picture should follow the weights'
    pictures = [o for o in nb.cells[1].outputs if 'image/png' in o.get('data', {})]
    assert [o.data['image/png'] for o in pictures] == [shown[-1][1]]
    assert nb.cells[2].outputs[0].data['text/plain'] == 'True'
    for c in nb.cells[3:]: assert sum('image/png' in o.get('data', {}) for o in c.outputs) == 1, 'a picture is shown once'


TINY = dict(model_args=dict(embed_dim=24, depth=2, num_heads=2), patch_size=4)

@pytest.mark.parametrize('c', [1, 2, 4, 6])
def test_any_number_of_channels(c, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (24, c, 16, 16), dtype=np.uint8)
    learn = gmml_learner(pretrain_dls(x, size=16, bs=8, valid_pct=.2, device='cpu'), 'vit_tiny_patch16_224', blocks=(1, 2), **TINY)
    e = Explore(learn)
    assert list(e.images)[:2] == ['held out 0', 'held out 1'] and len(e.panes) == 5
    if c in (1, 3):
        Image.fromarray(x[0, 0]).save(tmp_path/'a.png')
        assert images_for(tmp_path, (16, 16), c).shape == (1, c, 16, 16)
    else:
        Image.fromarray(x[0, 0]).save(tmp_path/'a.png'), Image.fromarray(x[1, 0]).save(tmp_path/'b.png')
        with pytest.raises(ValueError, match=f'takes {c} channels'): Explore(learn, images=str(tmp_path))
    show_attention(learn), show_blocks(learn)
    fine = finetune_learner(finetune_dls((x, [0, 1]*12), size=16, bs=8, recipe=None, device='cpu'), learn)
    assert torch.allclose(Explore(fine).scene.x[0], fine.dls.valid.one_batch()[0][0].as_subclass(torch.Tensor), atol=1e-5)


def test_files_as_the_model_saw_them(tmp_path):
    "Depth, border and crop of the learner's own images; files of one name in two folders"
    rng = np.random.default_rng(0)
    for i in range(12):
        (tmp_path/'ab'[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 400 if i else 300, (20, 30)).astype(np.uint16)).save(tmp_path/'ab'[i % 2]/f'{i//2}.png')
    dls = finetune_dls(tmp_path, size=16, bs=4, recipe=None, in_chans=1, resize='pad', device='cpu', valid_pct=.5)
    learn = finetune_learner(dls, None, arch='vit_tiny_patch16_224', model_args=dict(TINY['model_args'], patch_size=4))
    files = list(dls.valid.items)
    assert torch.allclose(inside(learn, files).x, torch.cat([b[0].as_subclass(torch.Tensor) for b in dls.valid]), atol=1e-5)
    assert len(Explore(learn).images) == len(files) and len(Explore(learn, images=tmp_path).images) == 12
