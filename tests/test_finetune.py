"Fine-tuning: where the encoder comes from, what is refused, rates by depth, freezing, mixing, and fastai's own tools"
import hashlib, json, shutil, subprocess, sys, tempfile
from copy import copy
from dataclasses import fields, replace
from functools import lru_cache
import matplotlib; matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np, pytest, timm, torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.interpret import ClassificationInterpretation
from fastai.losses import CrossEntropyLossFlat, FocalLossFlat, LabelSmoothingCrossEntropyFlat
from fastai.metrics import accuracy, top_k_accuracy
from fastai.vision.data import ImageDataLoaders
from functools import partial
from pathlib import Path
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from timm.layers import resample_abs_pos_embed
from gmml_nb.data import finetune_dls, pretrain_dls
from gmml_nb import export   # `export_classifier`
from gmml_nb import finetune
from gmml_nb.finetune import FINETUNE_RECIPES, FinetuneRecipe, SmoothLabels, MixupCutmix, as_loss, finetune_learner, ready_loss
from gmml_nb.vit import GMMLEncoder, resample_positions
from gmml_nb.weights import load_encoder, write_model
from gmml_nb.pretrain import gmml_learner

ARCH,TINY = 'vit_tiny_patch16_224', dict(embed_dim=16, depth=3, num_heads=2, patch_size=2)

@pytest.fixture(autouse=True)
def no_figures():
    "None is left open"
    yield
    plt.close('all')

def images(n=48, size=8, c=3):
    "Four classes that differ in brightness"
    y = np.arange(n) % 4
    x = np.random.RandomState(0).randint(0, 64, (n, size, size, c)) + 60*y[:,None,None,None]
    return x.astype(np.uint8), [f'class {i}' for i in y]

def pretrained(size=8, c=3, n=1, width=16):
    x,_ = images(16, size, c)
    learn = gmml_learner(pretrain_dls(x, size=size, bs=8, valid_pct=0, device='cpu'), ARCH, patch_size=2, blocks=(2, 3),
                         model_args=dict(embed_dim=width, depth=3, num_heads=2))
    with learn.no_bar(), learn.no_logging(): learn.fit_gmml(n, estimate=False)
    return learn

@pytest.fixture(scope='module')
def source(): return pretrained()

@pytest.fixture(scope='module')
def folder(source, tmp_path_factory): return source.export_encoder(tmp_path_factory.mktemp('enc')/'enc')

def labelled(size=8, c=3, bs=8, recipe=None, **kw): return finetune_dls(images(size=size, c=c), size=size, bs=bs, recipe=recipe, device='cpu', **kw)

def learner(encoder=None, dls=None, **kw):
    if encoder is None: kw = dict(dict(arch=ARCH, model_args=TINY), **kw)
    return finetune_learner(dls or labelled(), encoder, **{'recipe': 'deit', **kw})

def fit(learn, n=2):
    with learn.no_bar(), learn.no_logging(): learn.fit_finetune(n)
    return learn

def digest(model):
    h = hashlib.sha256()
    for k,v in model.state_dict().items(): h.update(k.encode() + v.numpy().tobytes())
    return h.hexdigest()

def body(model): return {k: v for k,v in model.state_dict().items() if not k.startswith('head.')}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

# Every field -------------------------------------------------------------------------------------------------------

CHANGED = dict(
    lr=(1e-3, {}), lr_start=(1e-5, {}), lr_end=(1e-6, {}), warmup=(0, {}), wd=(.5, {}), drop_path=(.9, {}), mixup=(0., {}),
    cutmix=(0., {}), switch=(0., {}), smoothing=(.3, {}), layer_decay=(.5, {}), freeze=(1, {}), head=('probe', {}), pool=('avg', {}))

@lru_cache(maxsize=None)
def run_with(settings): return digest(fit(learner(**json.loads(settings))).model)

def test_every_field_is_covered(): assert [*CHANGED, 'keep', 'crop_pct'] == [f.name for f in fields(FinetuneRecipe)]   # the last is about held-out images alone, the one before about unlabelled ones

@pytest.mark.parametrize('name', CHANGED)
def test_every_field_changes_the_run(name):
    value,base = CHANGED[name]
    assert run_with(json.dumps({**base, name: value})) != run_with(json.dumps(base))

def test_smoothing_without_mixing():
    a,b = (run_with(json.dumps(dict(mixup=0., cutmix=0., smoothing=s))) for s in (0., .3))
    assert a != b

def test_recipe_is_that_of_deit():
    r = FINETUNE_RECIPES['deit']
    want = dict(lr=5e-4, wd=.05, warmup=5, lr_start=1e-6, lr_end=1e-5, drop_path=.1, mixup=.8, cutmix=1., switch=.5, smoothing=.1,
                layer_decay=1., freeze=0, crop_pct=224/256)
    assert {k: getattr(r, k) for k in want} == want

def test_same_seed_same_weights():
    torch.manual_seed(1)
    a = fit(learner())
    torch.manual_seed(2)
    np.random.seed(2)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    b = fit(learner())
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()
    assert digest(a.model) == digest(b.model) != digest(fit(learner(seed=1)).model)

# Where the encoder comes from --------------------------------------------------------------------------------------

def test_folder_and_learner_give_the_same(source, folder, capsys):
    a,b = learner(folder),learner(source)
    n = len(body(a.model))
    assert capsys.readouterr().out.count(f'{n} of {n} encoder tensors loaded, 2 of the head are new') == 2
    assert same(body(a.model), source.model.encoder.vit.state_dict()) and digest(a.model) == digest(b.model)
    assert a.model.head.weight.shape == (4, 16)
    assert not same(body(fit(a).model), source.model.encoder.vit.state_dict())
    assert same(body(b.model), source.model.encoder.vit.state_dict())   # the learner that it came from is not trained along

def test_every_way_to_name_a_folder(folder, monkeypatch):
    want = digest(learner(folder).model)
    monkeypatch.setenv('HOME', str(folder.parent)), monkeypatch.chdir(folder.parent)
    for o in (str(folder), f'local-dir:{folder}', '~/enc', 'enc', 'enc/', './enc'): assert digest(learner(o).model) == want, o

def test_a_name_that_is_both(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path/ARCH), monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f'local-dir:{ARCH}.* or .timm/{ARCH}'): learner(ARCH)
    assert digest(learner(f'local-dir:{ARCH}').model) == digest(learner(folder).model)

def test_folders_that_are_no_encoders(folder, source, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(ValueError, match='no such folder here: .enk., and timm has no.*The nearest: enc'): learner('enk')
    (tmp_path/'ck'/'epoch_00001_batch_000000').mkdir(parents=True)
    for o in (tmp_path/'ck', tmp_path/'ck'/'epoch_00001_batch_000000'):
        (tmp_path/'ck'/'epoch_00001_batch_000000'/'state.pt').touch()
        with pytest.raises(ValueError, match='checkpoints of a run.*convert_checkpoint'): learner(o)
    with pytest.raises(ValueError, match='does not pretrain'): learner(learner(folder))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(ValueError, match='hf-hub:me/none cannot be fetched'): learner('hf-hub:me/none')

def test_nothing_gives_random_weights(capsys):
    a = learner()
    assert f'random weights: {len(a.model.state_dict())} tensors of {ARCH}' in capsys.readouterr().out
    assert digest(a.model) == digest(learner().model) != digest(learner(seed=1).model)

def test_architecture_of_a_folder_without_its_weights(folder, capsys):
    a = learner(folder, weights=False)
    assert 'random weights' in capsys.readouterr().out
    assert body(a.model).keys() == body(learner(folder).model).keys() and not same(body(a.model), body(learner(folder).model))

def test_trained_weights_are_no_random_start_for_the_head(folder):
    "The head is new, of the seed"
    a,b = learner(folder),learner(folder, seed=1)
    assert same(body(a.model), body(b.model)) and not torch.equal(a.model.head.weight, b.model.head.weight)

SIZES = [(4, 8), (8, 4), (8, 16), (8, 8), (16, 4), (12, 6), (32, 2)]

@pytest.mark.parametrize('kind', [{}, dict(class_token=False), dict(no_embed_class=True), dict(reg_tokens=2), dict(dynamic_img_size=True)], ids=lambda o: ' '.join(o) or 'plain')
def test_any_grid_to_any_other(kind, tmp_path):
    "Against an interpolation of the map itself, and timm's own where the old grid is square"
    torch.manual_seed(0)
    args = dict(TINY, depth=1, **kind)
    for old in SIZES:
        vit = GMMLEncoder(ARCH, 1, img_size=old, **args)
        folder,pos = write_model(vit.vit, tmp_path/'e', ([.5]*3, [.5]*3), vit.model_args),vit.vit.pos_embed.detach()
        gh,gw = (o//2 for o in old)
        n = pos.shape[1] - gh*gw
        for new in SIZES:
            got,grid = load_encoder(folder, 2, img_size=new).pos_embed.detach(),tuple(o//2 for o in new)
            want = F.interpolate(pos[:,n:].mT.unflatten(2, (gh, gw)), grid, mode='bicubic', antialias=True) if grid != (gh, gw) else pos[:,n:].mT.unflatten(2, grid)
            assert torch.equal(got[:,:n], pos[:,:n]) and torch.allclose(got[:,n:].mT.unflatten(2, grid), want, atol=1e-6), (old, new)
            if gh == gw and grid != (gh, gw) and grid[1] > 1: assert torch.allclose(got, resample_abs_pos_embed(pos, list(grid), num_prefix_tokens=n), atol=1e-6)

def test_pretraining_goes_on_at_another_grid(tmp_path):
    "timm itself would take the square root"
    a = GMMLEncoder(ARCH, 1, img_size=(4, 16), **dict(TINY, depth=1))
    folder = write_model(a.vit, tmp_path/'e', ([.5]*3, [.5]*3), a.model_args)
    b = GMMLEncoder(f'local-dir:{folder}', 1, pretrained=True, img_size=(16, 4))
    want = resample_positions(a.vit.pos_embed.detach(), (2, 8), (8, 2))
    assert torch.equal(b.vit.pos_embed, want) and torch.equal(b.vit.blocks[0].mlp.fc1.weight, a.vit.blocks[0].mlp.fc1.weight)

def test_places_of_prefix_tokens(folder):
    "With and without a place for the class token: the same function; with and without the token itself: refused"
    x,a = torch.randn(2, 3, 8, 8),load_encoder(folder, 3).eval()
    b = load_encoder(folder, 3, model_args=dict(no_embed_class=True)).eval()
    b.head.load_state_dict(a.head.state_dict())
    assert a.pos_embed.shape[1] == b.pos_embed.shape[1] + 1
    with torch.no_grad(): assert torch.allclose(a(x), b(x), atol=1e-5)
    with pytest.raises(ValueError, match='has a class token, and the model none'): load_encoder(folder, 3, model_args=dict(class_token=False))
    with pytest.raises(ValueError, match='reg_token .* against nothing'): load_encoder(folder, 3, model_args=dict(reg_tokens=2))

POOLS = {'token': {}, 'avg of an encoder with a token': dict(ask=dict(global_pool='avg')), 'map of one with a token': dict(ask=dict(global_pool='map')), 'no class token': dict(enc=dict(class_token=False)),
    'max, no class token': dict(enc=dict(class_token=False), ask=dict(global_pool='max')), 'attention': dict(arch='vit_base_patch16_siglip_224'),
    'average behind a norm': dict(arch='vit_dwee_patch16_reg1_gap_256'), 'distilled': dict(arch='deit_tiny_distilled_patch16_224'), 'deit3': dict(arch='deit3_small_patch16_224'),
    'registers': dict(arch='vit_small_patch14_reg4_dinov2'), 'any size': dict(enc=dict(dynamic_img_size=True))}

@pytest.mark.parametrize('kind', POOLS)
def test_every_pooling_trains_and_comes_back(kind, tmp_path):
    "Pretrained, exported, fine-tuned, exported, loaded by timm: the same logits"
    o = POOLS[kind]
    args = {k: v for k,v in TINY.items() if k != 'patch_size'} | o.get('enc', {})
    pre = gmml_learner(pretrain_dls(images(16)[0], size=8, bs=8, valid_pct=0, device='cpu'), o.get('arch', ARCH), patch_size=2, blocks=(2, 3), model_args=args)
    folder = pre.export_encoder(tmp_path/'e')
    dls,x = labelled(),torch.randn(2, 3, 8, 8)
    vit = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    with torch.no_grad():
        tokens = vit.norm(vit.forward_intermediates(x, 1, norm=False, output_fmt='NLC', intermediates_only=True)[0])
        if kind != 'distilled': assert torch.allclose(vit(x), tokens.mean(1), atol=1e-6)
    learn = finetune_learner(dls, folder, 'deit', model_args=o.get('ask'), lr=.05)
    want = o.get('ask', {}).get('global_pool') or ('avg' if vit.cls_token is None else 'token')
    assert learn.model.global_pool == want and digest(learn.model) == digest(finetune_learner(dls, pre, 'deit', model_args=o.get('ask')).model)
    assert type(learn.model.norm).__name__ == 'LayerNorm'
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    fit(learn, 1)
    learn.freeze()
    head = {k for k,p in learn.model.named_parameters() if p.requires_grad}
    assert {k for k in before if k.startswith('head')} <= head and not any(k.startswith(('blocks', 'cls', 'reg', 'dist', 'pos', 'patch', 'norm')) for k in head)
    assert all(not torch.equal(v, before[k]) for k,v in learn.model.state_dict().items() if k.startswith('head'))
    again = timm.create_model(f'local-dir:{learn.export_classifier(tmp_path/"c")}', pretrained=True).eval()
    learn.model.eval()
    with torch.no_grad(): assert torch.equal(again(x), learn.model(x))

def test_poolings_that_cannot_be(folder, tmp_path):
    no = GMMLEncoder(ARCH, 1, img_size=8, class_token=False, **TINY)
    no = write_model(no.vit, tmp_path/'no', ([.5]*3, [.5]*3), no.model_args)
    with pytest.raises(ValueError, match="no class token, take 'avg'"): learner(no, model_args=dict(global_pool='token'))
    with pytest.raises(ValueError, match='distilled'): learner(arch='deit_tiny_distilled_patch16_224', model_args=dict(TINY, global_pool='avg'))
    with pytest.raises(ValueError, match='no class token'): learner(no, pool='both')
    with pytest.raises(ValueError, match='VisionTransformerDistilled'): learner(arch='deit_tiny_distilled_patch16_224', model_args=TINY, pool='both')

def test_pooling_of_the_recipe(folder, tmp_path, capsys):
    "The same model as by timm's own word; a head on both trains, stops before it is written, and goes through `Learner.export`"
    for encoder,kw in ((folder, {}), (None, dict(arch=ARCH))):
        pools = {p: learner(encoder, **kw, **({} if encoder else dict(model_args=TINY)), pool=p) for p in ('token', 'avg', 'both')}
        names = {p: [(n, v.shape) for n,v in body(o.model).items()] for p,o in pools.items()}
        assert names['token'] == names['avg'] == names['both'] and digest(pools['token'].model) == digest(learner(encoder, **kw).model)
    assert digest(learner(folder, pool='avg').model) == digest(learner(folder, model_args=dict(global_pool='avg')).model)
    both,x = fit(learner(folder, pool='both', lr=.05)),torch.randn(2, 3, 8, 8)
    assert both.model.head.weight.shape == (4, 32) and not torch.equal(both.model.head.weight[:, :16], both.model.head.weight[:, 16:])
    with pytest.raises(ValueError, match='no folder is written: take'): both.export_classifier(tmp_path/'c')
    assert not (tmp_path/'c').exists()
    both.export(tmp_path/'both.pkl')
    again,code = tmp_path/'both.pkl',"import sys, torch; from fastai.learner import load_learner; print(load_learner(sys.argv[1]).model.eval()(torch.ones(1, 3, 8, 8)).tolist())"
    said = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(again)], capture_output=True, text=True)
    assert np.allclose(json.loads(said.stdout.splitlines()[-1]), both.model.cpu().eval()(torch.ones(1, 3, 8, 8)).tolist()), said.stderr[-500:]
    both.freeze()
    assert {n for n,p in both.model.named_parameters() if p.requires_grad} == {'head.weight', 'head.bias'}
    for kw,words in ((dict(pool='mean'), "Did you mean 'avg'"), (dict(global_pool='avg', model_args=dict(global_pool='avg')), "'pool'"), (dict(pool='avg', model_args=dict(global_pool='token')), 'the same thing')):
        with pytest.raises(ValueError, match=words): learner(folder, **kw)

def test_features_without_a_head(folder):
    vit = load_encoder(folder)
    assert vit(torch.randn(2, 3, 8, 8)).shape == (2, 16)

# Refusals ----------------------------------------------------------------------------------------------------------

def test_other_width(folder):
    with pytest.raises(ValueError, match=r'0 of \d+ encoder tensors match.*cls_token \(1, 1, 24\) against \(1, 1, 16\)'):
        learner(folder, arch=ARCH, model_args=dict(TINY, embed_dim=24))

def test_other_depth(folder):
    for depth in (2, 4):
        with pytest.raises(ValueError, match='encoder tensors match'): learner(folder, arch=ARCH, model_args=dict(TINY, depth=depth))

def test_renamed_tensor(folder, tmp_path):
    state = load_file(folder/'model.safetensors')
    state['blocks.0.attn.qvk.weight'] = state.pop('blocks.0.attn.qkv.weight')
    save_file(state, tmp_path/'model.safetensors')
    (tmp_path/'config.json').write_text((folder/'config.json').read_text())
    n = len(state)
    with pytest.raises(ValueError, match=rf'{n-1} of {n} encoder tensors match, 2 do not: .*qkv.weight .*against nothing.*qvk.weight not in the model'):
        learner(tmp_path)

def test_other_channels(folder):
    with pytest.raises(ValueError, match='images have 1 channels, the encoder was made for 3: pass in_chans=3'): learner(folder, labelled(c=1))

def test_label_free_batch(folder):
    with pytest.raises(ValueError, match='1 tensor.*without labels.*finetune_dls'):
        finetune_learner(pretrain_dls(images()[0], size=8, bs=8, device='cpu'), folder)

def test_no_such_folder():
    with pytest.raises(ValueError, match='no such folder here: .nowhere/enc'): learner('nowhere/enc')

def test_folder_without_an_encoder(tmp_path):
    with pytest.raises(ValueError, match='config.json'): learner(tmp_path)

def test_typos():
    with pytest.raises(ValueError, match="no fine-tuning recipe 'diet'. Did you mean 'deit'"): learner(recipe='diet')
    with pytest.raises(ValueError, match="'layer_decy'. Did you mean 'layer_decay'"): learner(layer_decy=.5)
    with pytest.raises(ValueError, match='freeze=4 of 3 blocks: give 0 to 3, or -1'): learner(freeze=4)

@pytest.mark.parametrize('kw,said', [(dict(learning_rate=.1), "Did you mean 'lr'"), (dict(epochs=3), r'fit_finetune\(3\)'), (dict(embed_dim=96), r'model_args=dict\(embed_dim='),
    (dict(weight_decay=.1), "'wd'"), (dict(batch_size=4), 'finetune_dls'), (dict(lr=-1), 'lr=-1: give a number above 0'), (dict(smoothing=1.), 'smoothing=1.0: give a number'),
    (dict(freeze=True), 'freeze=True: give a whole number'), (dict(mixup=-.1), 'mixup=-0.1: give'), (dict(layer_decay=2.), 'layer_decay=2.0: give'), (dict(drop_path=1.), 'drop_path=1.0: give'),
    (dict(warmup='5'), "warmup='5': give"), (dict(recipe=None), "recipe=None: give 'deit'"), (dict(dls='photos'), 'dls is a str, not loaders'), (dict(model_args=dict(TINY, drop_path_rate=.1)), 'drop_path='), (dict(crop_pct=0.), 'crop_pct=0.0: give'), (dict(loss_func=1), 'loss_func=1: give a function'),
    (dict(arch='resnet18', model_args={}), 'must be a plain transformer'), (dict(model_args=dict(TINY, num_heads=3)), 'num_heads=3 does not divide embed_dim=16: take 2 or 4'),
    (dict(model_args=dict(TINY, patch_size=3)), r'img_size=\(8, 8\) is not a multiple of the patch \(3, 3\): take \(9, 9\)'), (dict(model_args=dict(TINY, global_pool='mean')), 'There are: token, avg')], ids=str)
def test_what_a_tired_person_types(kw, said):
    with pytest.raises(ValueError, match=said): learner(**kw)

# Rates by depth, freezing ------------------------------------------------------------------------------------------

def group_of(learn, name):
    p = dict(learn.model.named_parameters())[name]
    i, = [i for i,g in enumerate(learn.opt.param_lists) if any(o is p for o in g)]
    return learn.opt.hypers[i]

@pytest.mark.parametrize('decay', [1., .5])
def test_rates_fall_towards_the_image(decay):
    seen = []
    class Look(Callback):
        def before_step(self): seen.append({k: dict(group_of(self.learn, k)) for k in depth})
    depth = {'patch_embed.proj.weight': 4, 'pos_embed': 4, 'cls_token': 4, 'blocks.0.mlp.fc1.weight': 3, 'blocks.0.norm1.bias': 3,
             'blocks.1.attn.qkv.weight': 2, 'blocks.2.mlp.fc2.weight': 1, 'norm.weight': 1, 'head.weight': 0, 'head.bias': 0}   # timm: the last norm goes with the last block
    learn = fit(learner(layer_decay=decay, cbs=Look(), lr=.05))
    assert len(seen) == 2*len(learn.dls.train)
    for o in seen:
        for k,d in depth.items(): assert o[k]['lr'] == pytest.approx(o['head.weight']['lr']*decay**d, rel=1e-6), k
    top = [o['head.weight']['lr'] for o in seen]
    assert top[0] == pytest.approx(1e-6) and max(top) <= .05*8/512 and top[-1] < max(top)

def test_no_decay_of_norms_biases_and_embeddings():
    learn = learner()
    learn.create_opt()
    for k in ('pos_embed', 'cls_token', 'blocks.0.norm1.weight', 'blocks.1.mlp.fc1.bias', 'patch_embed.proj.bias'):
        assert group_of(learn, k)['wd'] == 0, k
    for k in ('patch_embed.proj.weight', 'blocks.2.attn.qkv.weight', 'head.weight'): assert group_of(learn, k)['wd'] == .05, k

def test_no_decay_of_the_heads_bias():
    learn = learner()
    learn.create_opt()
    assert group_of(learn, 'head.bias')['wd'] == 0

@pytest.mark.parametrize('n', [-1, 0, 1, 3])
def test_freeze(folder, n):
    learn = learner(folder, freeze=n, lr=.05)
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    after = fit(learn).model.state_dict()
    if n == 0: frozen = ()
    elif n == -1: frozen = tuple(k for k in before if not k.startswith('head.'))
    else: frozen = ('cls_token', 'pos_embed', 'patch_embed.', *(f'blocks.{i}.' for i in range(n)))
    for k,v in before.items(): assert torch.equal(v, after[k]) == k.startswith(frozen or '?'), k

# Mixing ------------------------------------------------------------------------------------------------------------

def test_targets_of_mixup():
    seen = []
    class Look(Callback):
        order = 9.9
        def before_batch(self): seen.append((self.training, self.loss_func, *self.xb, *self.yb))
    dls = labelled()
    learn = fit(learner(dls=dls, cbs=Look()), 3)
    train = [(x, y) for t,_,x,y in seen if t]
    assert len(train) == 3*len(dls.train)
    for x,y in train:
        assert y.shape == (len(x), 4) and torch.allclose(y.sum(1), torch.ones(len(y))) and y.min() >= .1/4 - 1e-6
        assert ((y > .1/4 + 1e-6).sum(1) <= 2).all()   # of two images, at most
    assert any(((y > .026) & (y < .924)).any() for _,y in train)
    held_out = [(f, y) for t,f,_,y in seen if not t]
    assert held_out and all(y.ndim == 1 and isinstance(f, CrossEntropyLossFlat) for f,y in held_out)

def test_mixing_is_of_images_that_the_loader_gave():
    "Mixup alone: every image is l*a + (1-l)*b of a batch and its reverse, and the target tells l"
    learn = learner(cutmix=0., smoothing=0.)
    cb = next(o for o in learn.cbs if isinstance(o, MixupCutmix))
    x,y = (o.as_subclass(torch.Tensor) for o in learn.dls.one_batch())
    learn.xb,learn.yb = (x.clone(),),(y,)
    cb.before_batch()
    one = F.one_hot(y, 4).float()
    (mixed,),(target,) = learn.xb,learn.yb
    i = (one != one.flip(0)).any(1).nonzero()[0]
    lam = target[i, y[i]].item()
    assert torch.allclose(mixed, lam*x + (1-lam)*x.flip(0), atol=1e-5) and torch.allclose(target, lam*one + (1-lam)*one.flip(0), atol=1e-5)

@pytest.mark.parametrize('mix', [{}, dict(mixup=0., cutmix=0.)], ids=['mixing', 'smoothing'])
def test_loss_on_held_out_images_is_plain(mix):
    learn = fit(learner(**mix))
    last,mixed = learn.recorder.values[-1][1],float(learn.recorder.losses[-1])
    with learn.no_bar():
        preds,y = learn.get_preds()
        loss,acc = learn.validate()
    plain = F.nll_loss(preds.log(), y).item()
    assert loss == pytest.approx(plain, rel=1e-4) and last == pytest.approx(plain, rel=1e-4)
    assert acc == pytest.approx((preds.argmax(1) == y).float().mean().item())
    assert isinstance(learn.loss_func, CrossEntropyLossFlat)
    assert any(isinstance(o, SmoothLabels) for o in learn.cbs) == bool(mix)
    x,y = learn.dls.train.one_batch()
    learn.model.eval()
    with torch.no_grad(): hard = F.cross_entropy(learn.model(x.as_subclass(torch.Tensor)), y.as_subclass(torch.Tensor)).item()
    assert abs(mixed - hard) > 1e-4

def test_odd_last_batch_of_one():
    "timm mixes pairs: an odd batch loses its last image, and a batch of one must not become empty"
    x,y = images(41)
    dls = finetune_dls((x, y), size=8, bs=4, recipe=None, valid_pct=0, device='cpu').train
    from fastai.data.core import DataLoaders
    odd = dls.new(drop_last=False)
    assert len(odd)*4 > 41
    both = DataLoaders(odd, labelled().valid, device='cpu')
    both.c = 4
    learn = fit(learner(dls=both), 2)
    assert np.isfinite([float(o) for o in learn.recorder.losses]).all()

# The loss ----------------------------------------------------------------------------------------------------------

def constant(pred, y): return 0*pred.sum() + 7
def margin(pred, y): return F.multi_margin_loss(pred, y)
W = torch.tensor([1., 2., 3., 1000.])
LOSSES = dict(weights=CrossEntropyLossFlat(weight=W), module=nn.CrossEntropyLoss(weight=W, label_smoothing=.1), focal=FocalLossFlat(gamma=2., weight=W),
              smoothing=LabelSmoothingCrossEntropyFlat(), own=margin, constant=constant, function=F.cross_entropy, double=CrossEntropyLossFlat(weight=W.double()), summed=CrossEntropyLossFlat(reduction='sum'))
MIXES = dict(mixing={}, smoothing=dict(mixup=0., cutmix=0.), plain=dict(mixup=0., cutmix=0., smoothing=0.))

def first_loss(**kw): return float(fit(learner(**kw), 1).recorder.losses[0])

@pytest.mark.parametrize('mix', MIXES)
@pytest.mark.parametrize('name', LOSSES)
def test_any_loss_trains_and_validates(name, mix):
    "What is logged is the loss that was set, as an argument or later; the recipe smooths a cross-entropy without smoothing of its own"
    given,later,f = learner(loss_func=LOSSES[name], **MIXES[mix]),learner(**MIXES[mix]),LOSSES[name]
    later.loss_func = f
    for l in (given, later): fit(l, 1)
    assert digest(given.model) == digest(later.model) and (name in ('constant', 'function') or digest(given.model) != run_with(json.dumps(MIXES[mix])))
    logged = given.recorder.values[-1][1]
    with given.no_bar(): p,y,losses = given.get_preds(act=lambda o: o, with_loss=True)
    p,y = p.as_subclass(torch.Tensor),y.as_subclass(torch.Tensor)
    assert logged == pytest.approx(sum(len(o)*float(f(o, t)) for o,t in zip(p.split(8), y.split(8)))/len(y), rel=1e-3)   # fastai's mean over batches
    assert len(losses) == len(y) and given.loss_func.decodes(p).shape == y.shape

@pytest.mark.parametrize('smoothing', [0., .1])
@pytest.mark.parametrize('weight', [None, W])
def test_mixed_losses_are_the_mean_of_two(smoothing, weight):
    "Against both classes' cross-entropies by hand, an image weighing what its class does"
    learn = learner(loss_func=CrossEntropyLossFlat(weight=weight), cutmix=0., smoothing=smoothing, drop_path=0.)
    cb,w = learn.mixup_cutmix,torch.ones(4) if weight is None else weight
    learn.xb,learn.yb = learn.dls.train.one_batch()[:1],learn.dls.train.one_batch()[1:]
    learn.xb,learn.yb = (learn.xb[0].as_subclass(torch.Tensor),),(learn.yb[0].as_subclass(torch.Tensor),)
    x,y = learn.xb[0],learn.yb[0]
    loss = cb.training_loss(learn.loss_func)
    cb.before_batch()
    i = int((y != y.flip(0)).nonzero()[0])
    lam = ((learn.xb[0][i] - x.flip(0)[i])/(x[i] - x.flip(0)[i])).nanmedian()
    p = torch.randn(len(y), 4)
    def mean(t): return (w[t]*F.cross_entropy(p, t, reduction='none', label_smoothing=smoothing)).sum()/w[t].sum()
    assert loss(p, learn.yb[0]).item() == pytest.approx((lam*mean(y) + (1 - lam)*mean(y.flip(0))).item(), rel=1e-3)

def test_rare_classes_count_with_weights():
    "One image in ten, weighed up, is found; the others are not given up for it"
    x,y = images(80)
    y = [int(i % 10 == 0) for i in range(80)]
    x = np.where(np.array(y)[:,None,None,None] == 1, 255 - x//2, x//2).astype(np.uint8)
    for mix in MIXES.values():
        dls = finetune_dls((x, y), size=8, bs=16, recipe=None, device='cpu')
        learn = fit(finetune_learner(dls, None, arch=ARCH, model_args=TINY, loss_func=CrossEntropyLossFlat(weight=torch.tensor([1., 1000.])), lr=.3, **mix), 12)
        with learn.no_bar(): p,t = learn.get_preds()
        assert (p.argmax(1) == t)[t == 1].all() and (p.argmax(1) == t).float().mean() > .5

@pytest.mark.parametrize('f,said', [(1, 'loss_func=1'), (CrossEntropyLossFlat, 'give a function'), (CrossEntropyLossFlat(weight=torch.ones(3)), r'logits \(bs, 4\)'), (lambda p, y: 7., 'returns 7.0'),
    (nn.CrossEntropyLoss(reduction='none'), r'tensor of shape \(2,\)'), (nn.BCEWithLogitsLoss(), 'does not take logits'), (nn.NLLLoss(), 'take CrossEntropyLossFlat')], ids=range(7))
def test_losses_that_cannot_be(f, said):
    with pytest.raises(ValueError, match=said): learner(loss_func=f)
    learn = learner()
    with pytest.raises(ValueError, match=said):
        learn.loss_func = f
        fit(learn, 1)

def test_weights_come_to_the_device():
    "`meta` stands for a GPU"
    for f in (CrossEntropyLossFlat(weight=W), FocalLossFlat(weight=W.clone()), as_loss(partial(F.cross_entropy, weight=W))):
        with pytest.raises(ValueError): ready_loss(f, 3, 'meta')       # moved, then tried
        own = f.func.keywords if isinstance(f.func, partial) else vars(f.func) | dict(f.func.named_buffers())
        assert own['weight'].device.type == 'meta'

def test_an_interrupted_run_leaves_the_loss_alone():
    class Stop(Callback):
        def after_batch(self): raise KeyboardInterrupt
    for mix in MIXES.values():
        learn,own = learner(loss_func=margin, **mix),None
        own = learn.loss_func
        with pytest.raises(KeyboardInterrupt), learn.added_cbs(Stop()): fit(learn, 1)
        with learn.no_bar(): learn.validate()
        assert learn.loss_func is own
        fit(learn, 1)
        assert learn.loss_func is own

@pytest.mark.parametrize('cb', [MixUp, CutMix])
@pytest.mark.parametrize('mix', ['mixing', 'smoothing'])
def test_mixing_of_fastai_instead(cb, mix, capsys):
    learn = learner(**MIXES[mix])
    own = learn.loss_func
    with learn.no_bar(), learn.no_logging(): learn.fit_finetune(1, cbs=cb(.5))
    assert 'step aside' in capsys.readouterr().out and learn.loss_func is own
    fit(learn, 1)
    assert 'step aside' not in capsys.readouterr().out

# How images are prepared -------------------------------------------------------------------------------------------

def encoder_of(stats, **kw):
    vit = GMMLEncoder(ARCH, 1, img_size=8, **TINY)
    return write_model(vit.vit, Path(tempfile.mkdtemp())/'e', stats, vit.model_args, **kw)

def test_the_encoders_normalisation_is_taken_and_said(capsys):
    far,near = ([.9]*3, [.5]*3),[[float(v) + .001 for v in o] for o in labelled().stats]
    dls = labelled()
    assert np.allclose(learner(encoder_of(far), dls).dls.stats[0], .9) and torch.equal(dls.stats[0], labelled().stats[0]) and 'normalisation of the encoder is taken: mean (0.90 0.90 0.90)' in capsys.readouterr().out
    assert np.allclose(learner(encoder_of(near)).dls.stats[0], near[0]) and 'normalisation' not in capsys.readouterr().out
    assert np.allclose(learner(encoder_of(far), labelled(stats=([.1]*3, [.2]*3))).dls.stats[0], .1) and 'normalisation of the loaders is kept: mean (0.10 0.10 0.10)' in capsys.readouterr().out
    assert torch.equal(learner(None, dls).dls.stats[0], labelled().stats[0]) and 'normalisation' not in capsys.readouterr().out

def test_resize_and_depth_of_the_encoder(tmp_path, capsys):
    for i in range(8):
        (tmp_path/'ab'[i%2]).mkdir(exist_ok=True)
        Image.fromarray((np.arange(160).reshape(10, 16)*(i + 1)).astype(np.uint16)).save(tmp_path/'ab'[i%2]/f'{i}.png')
    e = encoder_of(([.5]*3, [.5]*3), resize='squish', depth={'16-bit': [0, 5000]})
    make = lambda **kw: finetune_dls(tmp_path, size=8, bs=2, recipe=None, valid_pct=.5, device='cpu', **kw)
    dls = make()
    before = dls.valid.one_batch()[0].clone()
    learn = learner(e, dls)
    said = capsys.readouterr().out
    assert (learn.dls.resize, learn.dls.depth) == ('squish', {'16-bit': [0, 5000]}) and 'resize of the encoder is taken: squish' in said and 'depth of the encoder is taken' in said
    assert not torch.equal(learn.dls.valid.one_batch()[0], before) and torch.equal(dls.valid.one_batch()[0], before)
    dls = learner(e, make(resize='pad', depth={'16-bit': [0, 1500]})).dls
    said = capsys.readouterr().out
    assert (dls.resize, dls.depth) == ('pad', {'16-bit': [0, 1500]}) and 'resize of the loaders is kept: pad' in said and 'depth of the loaders is kept' in said
    cfg = json.loads((learn.export_classifier(tmp_path/'c')/'config.json').read_text())
    assert cfg['depth'] == {'16-bit': [0, 5000]} and cfg['pretrained_cfg']['crop_mode'] == 'squash'

@pytest.mark.parametrize('loaders,kw,want', [(dict(recipe='crop'), {}, 224/256), (dict(recipe='crop'), dict(crop_pct=.9), .9), (dict(recipe='crop', crop_pct=1.), {}, 1.),
    (dict(recipe='crop', crop_pct=1.), dict(crop_pct=.9), .9), (dict(recipe='crop'), dict(recipe=FinetuneRecipe(crop_pct=.8)), .8), ({}, {}, 1.), ({}, dict(crop_pct=.9), .9)], ids=str)
def test_how_much_of_held_out_images_is_shown(loaders, kw, want, folder, tmp_path):
    learn = learner(folder, labelled(**loaders), **kw)
    assert learn.dls.crop_pct == learn.recipe.crop_pct == pytest.approx(want)
    cfg = json.loads((learn.export_classifier(tmp_path/'c')/'config.json').read_text())
    assert cfg['pretrained_cfg']['crop_pct'] == pytest.approx(want) and cfg['finetune']['recipe']['crop_pct'] == pytest.approx(want)

# fastai's own tools ------------------------------------------------------------------------------------------------

def test_metrics_and_confusion(tmp_path):
    dls = labelled()
    learn = fit(learner(dls=dls, metrics=[accuracy, partial(top_k_accuracy, k=2)], path=tmp_path, lr=.05, mixup=0., cutmix=0.), 30)
    with learn.no_bar():
        loss,top1,top2 = learn.validate()
        interp = ClassificationInterpretation.from_learner(learn)
    assert top1 > .5 and top1 <= top2 <= 1
    m = interp.confusion_matrix()
    assert m.shape == (4, 4) and m.sum() == len(dls.valid.dataset) and m.trace()/m.sum() == pytest.approx(top1)
    assert list(interp.vocab) == [f'class {i}' for i in range(4)]
    interp.plot_confusion_matrix(), interp.print_classification_report()
    learn.show_results()
    with learn.no_bar(): name,i,p = learn.predict(images()[0][3])
    assert name == dls.vocab[int(i)] and p.sum().item() == pytest.approx(1, abs=1e-4)

def test_saves_and_exports(tmp_path):
    from fastai.learner import load_learner
    learn = fit(learner(path=tmp_path), 1)
    learn.save('m')
    learn.export('m.pkl')
    with pytest.warns(UserWarning): again = load_learner(tmp_path/'m.pkl')
    assert same(again.model.state_dict(), learn.model.state_dict())

@pytest.fixture(scope='module')
def pngs(tmp_path_factory):
    root = tmp_path_factory.mktemp('pngs')
    for i,(x,y) in enumerate(zip(*images())):
        (root/y).mkdir(exist_ok=True)
        Image.fromarray(x).save(root/y/f'{i}.png')
    return root

def test_loaders_of_fastai(pngs, folder, tmp_path, capsys):
    dls = ImageDataLoaders.from_folder(pngs, valid_pct=.25, bs=8, seed=1, num_workers=0, device='cpu')
    learn = finetune_learner(dls, folder, path=tmp_path, lr=.05)
    assert 'normalisation of the loaders is kept' in capsys.readouterr().out
    assert learn.model.head.weight.shape == (4, 16)
    fit(learn, 2)
    with learn.no_bar():
        assert np.isfinite(learn.validate()).all()
        ClassificationInterpretation.from_learner(learn).plot_confusion_matrix()
        assert learn.predict(next(pngs.rglob('*.png')))[0] in dls.vocab

def test_other_loops_of_fastai(folder, capsys):
    for f in (lambda l: l.fit_one_cycle(1, 1e-3, wd=.2), lambda l: l.fit(1, 1e-3, wd=.2), lambda l: l.fit_flat_cos(1, 1e-3, wd=.2), lambda l: l.fine_tune(1, wd=.2)):
        learn = learner(folder)
        before = digest(learn.model)
        with learn.no_bar(), learn.no_logging(): f(learn)
        assert digest(learn.model) != before and all(p.requires_grad for p in learn.model.parameters())
        for g,h in zip(learn.opt.param_lists, learn.opt.hypers):
            for p in g: assert h['wd'] == (.2 if p.ndim == 2 or p.ndim == 4 else 0)
    with learn.no_bar(): found = learn.lr_find(num_it=12, show_plot=False)
    assert f'lr={found.valley*512/8:.2g}, which is for 512 images (a step has 8)' in capsys.readouterr().out

def test_frozen_and_thawed(folder):
    "By the recipe and by fastai's methods: the same marks, and one undoes the other"
    head,every = ['head.weight', 'head.bias'],[k for k,_ in learner(folder).model.named_parameters()]
    def trains(l): return [k for k,p in l.model.named_parameters() if p.requires_grad]
    def moved(l):
        before = {k: v.clone() for k,v in l.model.state_dict().items()}
        return [k for k,v in fit(l, 2).model.state_dict().items() if not torch.equal(v, before[k])]
    a,b = (learner(folder, lr=.05, mixup=0., cutmix=0., drop_path=0., **kw) for kw in (dict(freeze=-1), {}))
    b.freeze()
    for l in (a, b):
        assert trains(l) == head == moved(l)
        l.unfreeze()
        assert trains(l) == every == moved(l)
        l.freeze_to(-2)
        assert trains(l) == [k for k in every if k.startswith(('blocks.2', 'norm', 'head'))] == moved(l)
    with pytest.raises(ValueError, match='embedding, 3 blocks, head'): a.freeze_to(5)

def test_every_door_of_a_learner(folder, tmp_path):
    "What the chapter's table does not try: each public method is tried here, there, or is about the running of a loop"
    learn = fit(learner(folder, labelled(recipe='crop'), path=tmp_path), 1)
    with learn.no_bar():
        p,y = learn.tta(n=2)
        assert p.shape == (len(y), 4) and torch.allclose(p.sum(1), torch.ones(len(y)), atol=1e-5)
        q,_ = learn.get_preds()
        assert not torch.equal(p, q) and torch.equal(learn.tta(n=2)[0], p) and learn.tta(n=2, use_max=True)[0].shape == p.shape and torch.equal(learn.get_preds()[0], q)
        with pytest.raises(ValueError, match="finetune_dls\\(recipe='light'\\)"): learner(folder).tta()
        i = ClassificationInterpretation.from_learner(learn)
        i.plot_top_losses(2), i.top_losses(2, items=True), i.show_results([0]), i.most_confused()
        assert list(learn.validate(dl=learn.dls.test_dl(learn.dls.valid.items, with_labels=True))) == pytest.approx(list(learn.validate()))
        assert 'Total params' in learn.summary()
    from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
    with learn.no_bar(), learn.no_logging(): learn.fit_finetune(2, cbs=[SaveModelCallback(), EarlyStoppingCallback()])
    with pytest.raises(ValueError, match='finetune_learner'): pretrained().fit_finetune(1)

# Several learners, several doors -----------------------------------------------------------------------------------

def test_two_learners_of_the_same_loaders():
    "The second leaves the first as it is, and random weights after an encoder start as from fresh loaders"
    dls,x = labelled(recipe='crop'),images()[0][3]
    a = learner(encoder_of(([.9]*3, [.5]*3)), dls)
    with a.no_bar(): before = a.predict(x)[2],a.validate()
    b,c = learner(encoder_of(([.2]*3, [.1]*3)), dls, crop_pct=.5),learner(None, dls)
    with a.no_bar(): assert torch.equal(a.predict(x)[2], before[0]) and list(a.validate()) == list(before[1])
    assert (a.dls.crop_pct, b.dls.crop_pct, c.dls.crop_pct) == (.875, .5, .875) and np.allclose(b.dls.stats[0], .2)
    fit(a, 1)
    assert digest(fit(c, 1).model) == digest(fit(learner(None, labelled(recipe='crop')), 1).model)

def test_depth_of_the_encoder_stays_with_files_of_8_bits(pngs, tmp_path):
    e = encoder_of(([.5]*3, [.5]*3), depth={'16-bit': [0, 414]})
    learn = learner(e, finetune_dls(pngs, size=8, bs=8, recipe=None, device='cpu'))
    assert learn.dls.depth == json.loads((learn.export_classifier(tmp_path/'c')/'config.json').read_text())['depth'] == {'16-bit': [0, 414]}

def test_what_is_exported_is_the_latest_runs(folder, tmp_path, capsys):
    learn = fit(learner(folder, lr=.01), 2)
    facts = lambda: json.loads((learn.export_classifier(tmp_path/'c')/'config.json').read_text())['finetune']
    assert facts()['epochs'] == 2 and 'only fit_finetune' not in capsys.readouterr().out
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-3), learn.fit_one_cycle(1, 1e-3)
    now = learn.recorder.values[-1][0]
    with learn.no_bar(): learn.lr_find(num_it=4, show_plot=False), learn.validate()
    assert facts()['epochs'] == 1 and facts()['results']['train_loss'] == now and facts()['images'] == len(learn.dls.train.dataset)
    assert capsys.readouterr().out.count('lr of the recipe: only fit_finetune goes by that') == 1

def test_several_images_at_once_are_refused(pngs):
    learn,x = learner(),images()[0]
    for o in (list(x[:2]), x[:2], pngs, [str(f) for f in pngs.rglob('*.png')][:2]):
        with pytest.raises(ValueError, match='predict answers for one image'): learn.predict(o)

def test_training_images_are_measured_plain():
    learn = learner(dls=labelled(recipe='crop'))
    with learn.no_bar():
        p,y = learn.get_preds(ds_idx=0)
        loss,acc = learn.validate(0)
    assert len(y) == len(learn.dls.train.dataset) and loss == pytest.approx(F.nll_loss(p.log(), y).item(), abs=1e-4) and acc == pytest.approx((p.argmax(1) == y).float().mean().item())

@pytest.mark.parametrize('f,said', [(lambda l: l.fit_finetune(1, .01), 'cbs=0.01: give fastai callbacks'), (lambda l: l.fit_finetune(1, lr=.01), r'finetune_learner\(..., lr=...\)'), (lambda l: l.fit_finetune(epochs=1), "Did you mean 'n_epoch'"),
    (lambda l: l.fit_finetune(1, checkpoint=True), 'checkpoint=True: give a folder'), (lambda l: l.fit_finetune(1, cbs='x'), "cbs='x'"), (lambda l: learner(l.model), 'VisionTransformer is no name of a model'),
    (lambda l: learner(metrics='accuracy'), "metrics='accuracy': give the function"), (lambda l: learner(metrics=[accuracy, lambda p, y: F.mse_loss(p, y)]), 'the metric <lambda> does not take'),
    (lambda l: learner(loss_func=nn.BCEWithLogitsLoss()), 'loss_func=BCEWithLogitsLoss does not'), (lambda l: l.fit_finetune(1, colour=1), 'There are: n_epoch, cbs, checkpoint')], ids=range(10))
def test_slips(f, said):
    with pytest.raises(ValueError, match=said): f(learner())

def test_numbers_of_numpy_and_losses_of_people(capsys):
    class Own(nn.Module):
        def __init__(self): super().__init__(); self.scale = nn.Parameter(torch.ones(()))
        def forward(self, p, y): return F.cross_entropy(self.scale*p, y)
    fit(learner(loss_func=Own()), np.int64(1))
    assert 'loss_func=Own has parameters of its own' in capsys.readouterr().out
    fit(learner(loss_func=CrossEntropyLossFlat(weight=torch.tensor(np.array([1., 2., 3., 4.])))), 1)

def test_targets_that_are_no_classes():
    dls = labelled()
    for o in dls.loaders: o.dataset.labels = o.dataset.labels.float()
    with pytest.raises(ValueError, match='need class numbers'): learner(dls=dls)

def test_how_fastais_loaders_show_images(pngs, tmp_path, capsys):
    from fastai.vision.augment import RandomResizedCrop, Resize
    e = encoder_of(([.5]*3, [.5]*3), resize='pad')
    for tfm,mode,pct in ((Resize(8, method='squish'), 'squash', 1.), (Resize(8), 'center', 1.), (RandomResizedCrop(8), 'squash', .5), (None, 'center', 1.)):
        dls = ImageDataLoaders.from_folder(pngs, valid_pct=.25, bs=8, seed=1, num_workers=0, device='cpu', item_tfms=tfm)
        learn = learner(e, dls)
        said = capsys.readouterr().out
        pre = json.loads((learn.export_classifier(tmp_path/'c')/'config.json').read_text())['pretrained_cfg']
        assert (pre['crop_mode'], pre['crop_pct']) == (mode, pct) and ('resize of the loaders is kept' in said) == (tfm is not None)
        assert ('cannot be read' in capsys.readouterr().out) == (tfm is None)

def test_read_in_a_new_process(tmp_path):
    learn = fit(learner(path=tmp_path), 1)
    learn.export('m.pkl')
    code = f"from fastai.learner import load_learner; l = load_learner({str(tmp_path/'m.pkl')!r}); l.export_classifier({str(tmp_path/'c')!r})"
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)
    assert json.loads((tmp_path/'c'/'config.json').read_text())['finetune']['images'] == len(learn.dls.train.dataset)

# The head first, and few labels --------------------------------------------------------------------------------------

def features_and_answers(learn):
    "Of the training images, plain: what the head reads, class numbers, probabilities"
    ds = copy(learn.dls.train.dataset)
    ds.augment = None
    x,y = (torch.cat(o).as_subclass(torch.Tensor) for o in zip(*learn.dls.train.new(ds, shuffle=False, drop_last=False)))
    vit = learn.model.eval()
    with torch.no_grad(): return vit.forward_head(vit.forward_features(x), pre_logits=True).numpy(), y.numpy(), vit(x).softmax(-1).numpy()

@pytest.mark.parametrize('pool', ['token', 'avg'])
@pytest.mark.parametrize('n', [2, 4])
def test_head_is_logistic_regression(folder, pool, n):
    "It answers as scikit-learn's pipeline does; the encoder is as it was; no random number is drawn"
    x,y = images()
    dls = finetune_dls((x, [f'{int(o[-1]) % n}' for o in y]), size=8, bs=7, recipe='light', device='cpu')
    torch.manual_seed(3)
    learn = learner(folder, dls, head='probe', pool=pool)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    twin = learner(folder, dls, pool=pool)
    assert torch.rand(1) == drawn and same(body(learn.model), body(twin.model))
    f,y,p = features_and_answers(learn)
    fit = make_pipeline(StandardScaler(), LogisticRegression(C=.1, max_iter=1000)).fit(f, y)
    assert p.shape == (len(y), n) and np.allclose(p, fit.predict_proba(f), atol=1e-4)

def test_head_of_classes_without_an_image(folder):
    dls = labelled()
    dls.train.dataset.labels = dls.train.dataset.labels.clamp(max=2)
    f,y,p = features_and_answers(learner(folder, dls, head='probe'))
    assert set(y) == {0, 1, 2} and (p[:, 3] < p[:, :3].max(1)).all() and (p.argmax(1) == y).mean() > .5
    dls.train.dataset.labels = dls.train.dataset.labels*0   # one class: nothing to fit
    assert torch.equal(learner(folder, dls, head='probe').model.head.weight, learner(folder, dls).model.head.weight)

def test_both_heads_of_a_distilled_transformer():
    m = learner(arch='deit_tiny_distilled_patch16_224', head='probe').model
    assert m.head.weight.abs().sum() > 0 and not torch.equal(m.head.weight, m.head_dist.weight)

@pytest.mark.parametrize('limit,name', [(10, 'few'), (9, 'deit')])
def test_auto_goes_by_the_labels_of_a_class(folder, capsys, monkeypatch, limit, name):
    "Of 38 images of four classes; what is said by hand holds"
    monkeypatch.setattr(finetune, 'FEW_LABELS', limit)
    learn = finetune_learner(labelled(), folder, lr=.05)
    assert f"10 labelled images a class: recipe='{name}'" in capsys.readouterr().out
    assert replace(learn.recipe, crop_pct=FinetuneRecipe().crop_pct) == replace(FINETUNE_RECIPES[name], lr=.05)

def test_few_goes_by_where_the_weights_come_from(folder):
    few = lambda e, **kw: learner(e, recipe='few', **kw)
    assert few(folder).recipe.pool == 'avg' and few(None).recipe.pool == 'avg' and few(folder, pool='token').recipe.pool == 'token'
    assert few(folder, model_args=dict(global_pool='token')).model.global_pool == 'token'
    decay = FINETUNE_RECIPES['few'].layer_decay   # protects what is known
    assert decay < 1 and [few(folder).recipe.layer_decay, few(None).recipe.layer_decay, few(folder, weights=False).recipe.layer_decay, few(None, layer_decay=.5).recipe.layer_decay] == [decay, 1., 1., .5]
    assert few(None, arch='deit_tiny_distilled_patch16_224').recipe.pool is None
    assert finetune.has_own_pool('vit_tiny_patch16_224', None, None) and not finetune.has_own_pool(folder, None, {})

def test_recipes_that_are_none(folder):
    for recipe,words in (('few shot', 'few'), ('DeiT', 'deit'), (3, "'deit', 'few', 'auto', or a FinetuneRecipe"), (None, 'or a FinetuneRecipe')):
        with pytest.raises(ValueError, match=words): learner(folder, recipe=recipe)
    with pytest.raises(ValueError, match="Did you mean 'probe'"): learner(folder, head='prob')
