"Pictures while a run goes on, in a real notebook: one output, redrawn; explorers of any number of channels"
import copy, sys, types
import matplotlib; matplotlib.use('Agg')
import matplotlib.pyplot as plt, nbformat, numpy as np, pytest, torch
from fastai.callback.core import Callback
from nbclient import NotebookClient
from PIL import Image
from timm.utils import AttentionExtract
import gmml_nb.visualise as V
from gmml_nb.baselines import mae_learner
from gmml_nb.corruption import Replace
from gmml_nb.data import finetune_dls, pretrain_dls
from gmml_nb.decoder import GMMLAutoencoder, PointwiseDecoder
from gmml_nb.evaluate import eval_mode
from gmml_nb.explore import Explore
from gmml_nb.finetune import finetune_learner
from gmml_nb.pretrain import gmml_learner
from gmml_nb.vit import GMMLEncoder
from gmml_nb.weights import example_encoder, example_images
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


# What the pictures are made of --------------------------------------------------------------------------------------

STATS = torch.tensor([.5]*3), torch.tensor([.25]*3)

@pytest.fixture(scope='module')
def photos(): return np.random.default_rng(1).integers(0, 256, (40, 24, 24, 3), dtype=np.uint8)

@pytest.fixture(scope='module')
def learn(photos):
    return gmml_learner(pretrain_dls(photos, size=24, bs=8, valid_pct=.2, device='cpu', stats=([.5]*3, [.25]*3)), 'vit_tiny_patch16_224', patch_size=4,
                        model_args=dict(embed_dim=48, depth=6, num_heads=3), blocks=(3, 4, 5, 6), seed=0)

def test_blocks_in_numbers(learn, photos):
    pics = V.block_pictures(learn, photos, Replace(.3))
    keep = ~pics['mask'].expand_as(pics['clean'])
    assert torch.allclose(pics['corrupted'][keep], pics['clean'][keep]) and torch.equal(V.block_pictures(learn, photos, Replace(.3))[6], pics[6])
    assert torch.allclose(pics['clean']*255, torch.tensor(photos).permute(0, 3, 1, 2).float(), atol=1e-3)
    one = V.block_pictures(learn, photos[0], Replace(.3), (6,))   # the donor is a held-out image
    assert (one['corrupted'] != one['clean']).any()
    with pytest.raises(ValueError, match='Replace needs another image'): V.block_pictures(learn.model, photos[0], Replace(.3), stats=STATS)
    o = inside(learn, photos)
    x,mask = V.corrupted(o.x, V.ALIENS['noise'], o.patch_size)
    direct = (V.restore_blocks(o, x, 6)[6] - o.x).abs()[mask.expand_as(x)].mean()
    e = V.block_errors(learn, photos, V.ALIENS)
    assert abs(e[(e.alien == 'noise') & (e.block == 6)].error.item() - direct) < 1e-4

def test_a_folder_restores_as_its_learner_does(learn, photos, tmp_path):
    "The decoder lies beside the encoder; without it, and for MAE, there is nothing to restore with"
    learn.model.eval()
    folder = learn.export_encoder(tmp_path/'e')
    a,b = inside(learn, photos),inside(folder, photos)
    for (i,x),(j,y) in zip(V.restore_blocks(a, a.x).items(), V.restore_blocks(b, b.x).items()): assert i == j and torch.allclose(x, y, atol=1e-5)
    (folder/'decoder.safetensors').unlink()
    with pytest.raises(ValueError, match='their exported folder'): V.restore_blocks(inside(folder, photos), b.x)
    with pytest.raises(ValueError, match='their exported folder'): V.restore_blocks(inside(example_encoder('mae'), example_images(2)), torch.zeros(2, 3, 32, 32))


def test_tiles():
    "A row of the first channel of many, a row of grey; white between them"
    ax = V.show_tiles([[torch.zeros(1, 4, 6), torch.ones(1, 4, 6)], [torch.full((10, 4, 6), .5), torch.zeros(1, 4, 6)]], ['a', 'b'])
    g = np.asarray(ax.images[0].get_array())
    assert g.shape == (2*5 + 1, 2*7 + 1, 3) and (g[6:10, 1:7] == .5).all() and (g[5] == 1).all() and [o.get_text() for o in ax.get_xticklabels()] == ['a', 'b']
    plt.close(ax.figure)

def state(vit): return [(m.training, getattr(m, 'fused_attn', None), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in vit.modules()]

def test_attention_is_what_the_model_computes_with(learn, photos):
    "By what the module gives out, by a textbook's softmax; an error on the way leaves no hook behind"
    vit, seen = learn.model.encoder.vit.train(), {}
    before, a = state(vit), V.attention(learn, photos)
    h = vit.blocks[2].attn.register_forward_hook(lambda m, args, out: seen.update(x=args[0], out=out))
    with eval_mode(vit): vit.forward_features(inside(learn, photos).x)
    h.remove()
    with torch.no_grad():
        q,k,v = (t.unflatten(-1, (3, 16)).transpose(1, 2) for t in vit.blocks[2].attn.qkv(seen['x']).chunk(3, -1))   # (bs, heads, n, 16) each
        assert torch.allclose(vit.blocks[2].attn.proj((a[3] @ v).transpose(1, 2).flatten(2)), seen['out'], atol=1e-5)
        w = torch.exp(torch.einsum('nd,md->nm', q[5, 1], k[5, 1])/16**.5)
        assert torch.allclose(a[3][5, 1], w/w.sum(1, keepdim=True), atol=1e-5)
    class Broken(torch.nn.Module):
        def forward(self, x): raise RuntimeError('broken')
    mlp,vit.blocks[5].mlp = vit.blocks[5].mlp,Broken()
    with pytest.raises(RuntimeError, match='broken'): V.attention(learn, photos)
    vit.blocks[5].mlp = mlp
    assert state(vit) == before

def test_places(learn, photos):
    d = V.distances((2, 3), (8, 4))
    assert d[0].tolist() == pytest.approx([0, 4, 8, 8, 80**.5, 128**.5]) and torch.equal(d, d.T)
    assert (V.distances((3, 3), (1, 1), float('inf')) <= 1).sum(1).tolist() == [4, 6, 4, 6, 9, 6, 4, 6, 4]
    t, full = V.token_attention(learn, photos, row=2, col=1), V.patch_attention(V.attention(learn, photos), inside(learn, photos))
    assert torch.isclose(t[4][7, 5, 3], full[4][7, :, 2*6 + 1, 5*6 + 3].mean())
    with pytest.raises(ValueError, match='there are 6 x 6 patches'): V.token_attention(learn, photos, row=6)
    f = V.framed(torch.zeros(1, 24, 24), (4, 4), 1, 2)[0].nonzero()
    assert f.amin(0).tolist() + f.amax(0).tolist() == [4, 8, 7, 11]

def test_colours_of_patches(learn, photos):
    c = V.patch_colours(learn, photos)
    assert c.shape == (40, 3, 6, 6) and torch.equal(c, V.patch_colours(learn, photos))
    assert abs(torch.corrcoef(c[:, :2].transpose(0, 1).flatten(1))[0, 1]) < .1   # not correlated, but for the clipping

@pytest.mark.parametrize('kw', [dict(class_token=False, global_pool='avg'), dict(reg_tokens=2, qk_norm=True)], ids=['no class token', 'registers'])
def test_any_shape_and_transformer(kw):
    "Oblong images and patches, one channel; a copy with its fast attention turned off, read by timm's `AttentionExtract`, says the same"
    enc = GMMLEncoder('vit_tiny_patch16_224', img_size=(32, 64), patch_size=(8, 16), in_chans=1, embed_dim=48, depth=2, num_heads=3, blocks=(1, 2), **kw)
    x, grey, net = torch.rand(3, 1, 32, 64), ([.5], [.25]), GMMLAutoencoder(enc, PointwiseDecoder(enc.dim, 1, enc.patch_size))
    slow = copy.deepcopy(enc.vit)
    for b in slow.blocks: b.attn.fused_attn = False
    with torch.no_grad(): maps = AttentionExtract(slow, method='hook')(inside(net, x, grey).x)
    for ours, timms in zip(V.attention(net, x, stats=grey).values(), maps.values()): assert torch.allclose(ours, timms, atol=1e-5)
    assert V.token_attention(net, x, 3, 1, stats=grey)[2].shape == (3, 4, 4) and V.patch_colours(net, x, stats=grey).shape == (3, 3, 4, 4)
    assert V.block_pictures(net, x, stats=grey)[2].shape == x.shape

def test_mae_has_attention_and_no_blocks_to_restore(learn, photos):
    mae = mae_learner(learn.dls, 'vit_tiny_patch16_224', patch_size=4, model_args=dict(embed_dim=48, depth=6, num_heads=3), blocks=(6,), seed=0, decoder_depth=1)
    assert V.attention(mae, photos[:2], (1, 6))[6].shape == (2, 3, 37, 37)
    with pytest.raises(ValueError, match='a MAE has no decoder of single tokens'): show_blocks(mae, photos)

def test_pictures_go_to_wandb(learn, monkeypatch):
    "By a stand-in; fastai finds its callback by the name `wandb`, and so does ours. The row is sent with the one that fastai's writes next"
    logged, fake = [], types.ModuleType('wandb')
    fake.log, fake.Image = lambda row, **kw: logged.append((row, kw)), lambda fig: fig
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    class WandbCallback(Callback): pass
    with learn.no_bar(), learn.no_logging(): learn.fit_gmml(4, cbs=[V.ShowReconstructions(every=9, n=4), WandbCallback()], estimate=False)
    assert [kw for _,kw in logged] == [dict(commit=False)] and list(logged[0][0]) == ['reconstructions']
