"Fine-tuning: where the encoder comes from, what is refused, rates by depth, freezing, mixing, and fastai's own tools"
import hashlib, json
from dataclasses import fields
from functools import lru_cache
import matplotlib; matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np, pytest, torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.interpret import ClassificationInterpretation
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy, top_k_accuracy
from fastai.vision.data import ImageDataLoaders
from functools import partial
from PIL import Image
from safetensors.torch import load_file, save_file
from gmml_nb.data import finetune_dls, pretrain_dls
from gmml_nb.finetune import FINETUNE_RECIPES, FinetuneRecipe, SmoothLabels, MixupCutmix, finetune_learner
from gmml_nb.weights import load_encoder
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
    return finetune_learner(dls or labelled(), encoder, **kw)

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
    cutmix=(0., {}), switch=(0., {}), smoothing=(.3, {}), layer_decay=(.5, {}), freeze=(1, {}))

@lru_cache(maxsize=None)
def run_with(settings): return digest(fit(learner(**json.loads(settings))).model)

def test_every_field_is_covered(): assert list(CHANGED) == [f.name for f in fields(FinetuneRecipe)]

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
                layer_decay=1., freeze=0)
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

def test_path_as_text(folder): assert digest(learner(str(folder)).model) == digest(learner(folder).model)

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

@pytest.mark.parametrize('size', [6, 12, (12, 8)], ids=str)
def test_position_embedding_of_another_size(source, folder, size):
    dls = finetune_dls(images(size=12), size=size, bs=8, recipe=None, device='cpu')
    model = learner(folder, dls).model
    h,w = (size, size) if isinstance(size, int) else size
    old,new = source.model.encoder.vit.pos_embed.detach(),model.pos_embed.detach()
    assert new.shape == (1, 1 + h//2*(w//2), 16) and torch.equal(new[:,0], old[:,0])
    grid = lambda o, gh, gw: o[:,1:].transpose(1, 2).unflatten(2, (gh, gw))
    want = F.interpolate(grid(old, 4, 4), (h//2, w//2), mode='bicubic', antialias=True, align_corners=False)
    assert torch.allclose(grid(new, h//2, w//2), want, atol=1e-4)
    fit(learner(folder, dls), 1)

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
    with pytest.raises(ValueError, match='no folder nowhere/enc'): learner('nowhere/enc')

def test_folder_without_an_encoder(tmp_path):
    with pytest.raises(ValueError, match='config.json'): learner(tmp_path)

def test_typos():
    with pytest.raises(ValueError, match="no fine-tuning recipe 'diet'. Did you mean 'deit'"): learner(recipe='diet')
    with pytest.raises(ValueError, match="'layer_decy'. Did you mean 'layer_decay'"): learner(layer_decy=.5)
    with pytest.raises(ValueError, match='freeze=4 of 3 blocks: give 0 to 3, or -1'): learner(freeze=4)

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

def test_loaders_of_fastai(pngs, folder, tmp_path):
    dls = ImageDataLoaders.from_folder(pngs, valid_pct=.25, bs=8, seed=1, num_workers=0, device='cpu')
    learn = finetune_learner(dls, folder, path=tmp_path, lr=.05)
    assert learn.model.head.weight.shape == (4, 16)
    fit(learn, 2)
    with learn.no_bar():
        assert np.isfinite(learn.validate()).all()
        ClassificationInterpretation.from_learner(learn).plot_confusion_matrix()
        assert learn.predict(next(pngs.rglob('*.png')))[0] in dls.vocab

def test_other_loops_of_fastai(folder):
    learn = learner(folder)
    before = digest(learn.model)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-3)
    assert digest(learn.model) != before
    with learn.no_bar(): assert learn.lr_find(num_it=12, show_plot=False).valley > 0
