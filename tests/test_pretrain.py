"Pretraining: every field of a recipe changes the run; runs repeat, survive a kill, stop when they must; fastai's habits work"
import hashlib, json, os, shutil, signal, subprocess, sys, time
from dataclasses import asdict, fields
from functools import lru_cache
import matplotlib; matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np, pytest, timm, torch
from PIL import Image
from fastai.callback.core import Callback
import fastai.callback.fp16, fastai.callback.hook, fastai.callback.schedule   # patch `to_fp16`, `lr_find` and the like into Learner
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import SaveModelCallback
from fastai.learner import load_learner
from gmml_nb.checkpoint import Checkpoint
from gmml_nb.data import pretrain_dls
from gmml_nb.recipe import RECIPES, Recipe
from gmml_nb.pretrain import gmml_learner
from gmml_nb.weights import example_encoder
from callbacks import StopAt

TINY = dict(embed_dim=16, depth=2, num_heads=2)

@pytest.fixture(autouse=True)
def no_figures():
    "None is left open"
    yield
    plt.close('all')

def images(n=16, h=12, w=12, c=3): return np.random.RandomState(0).randint(0, 256, (n, h, w, c), dtype=np.uint8)

def learner(x=None, bs=8, valid_pct=0, patch_size=2, blocks=(1, 2), path='.', cbs=None, seed=42, model_args=TINY, arch='vit_tiny_patch16_224', **kw):
    x = images() if x is None else x
    dls = pretrain_dls(x, size=x.shape[1:3], bs=bs, valid_pct=valid_pct, device='cpu')
    return gmml_learner(dls, arch, patch_size=patch_size, model_args=model_args, blocks=blocks, path=path,
                        cbs=cbs, seed=seed, **kw)

def fit(learn, n=2, **kw):
    with learn.no_bar(), learn.no_logging(): learn.fit_gmml(n, estimate=False, **kw)
    return learn

def digest(learn):
    h = hashlib.sha256()
    for k,v in learn.model.state_dict().items(): h.update(k.encode() + v.numpy().tobytes())
    return h.hexdigest()

# Every field -------------------------------------------------------------------------------------------------------

# field: (another value, what else the run needs for the field to matter)
CHANGED = dict(
    alien=('comb2', {}), zeros=((.2, .3), dict(alien='zeros')), noise=((.2, .3), dict(alien='noise')),
    replace=(.6, dict(alien='replace')), max_side=(.6, {}), unit=('pixel', {}), placement=('authors', {}),
    donor_self=(True, dict(alien='replace')), views=(2, {}), crop=((.5, 1.), {}), flip=(0., {}), jitter=((.4, .1, .1, .01), {}),
    jitter_p=(.9, {}), blur=((1., 1.5), dict(blur_p=1.)), blur_p=(1., {}), blocks=((2,), {}), decoder_layers=(3, {}),
    decoder_act=('gelu', {}), drop_path=(.9, {}), pos_init=('sincos', {}), loss=('l2', {}), lr=(1e-3, {}), lr_end=(1e-5, {}),
    warmup=(0, {}), wd=(.1, {}), wd_end=(.9, {}), mom=(.8, {}), sqr_mom=(.9, {}), clip=(1e-3, {}),
    stats=('weights', dict(arch=str(example_encoder()), patch_size=4, blocks=(6, 12), model_args=None, recipe='paper')), encoder_scale=(.1, {}), layer_decay=(.5, {}),
    decoder_first=(1, {}), tuned=('norms', {}))

@lru_cache(maxsize=None)
def run_with(settings):
    "Weights after four steps; `settings` is JSON"
    return digest(fit(learner(**json.loads(settings))))

def test_every_field_is_covered(): assert list(CHANGED) == [f.name for f in fields(Recipe)]

@pytest.mark.parametrize('name', CHANGED)
def test_every_field_changes_the_run(name):
    value,base = CHANGED[name]
    assert value != base.get(name, getattr(Recipe(), name))
    assert run_with(json.dumps({**base, name: value})) != run_with(json.dumps(base))

@pytest.mark.parametrize('i', range(4))
def test_every_part_of_the_jitter_changes_the_run(i):
    jitter = [.1, .1, .1, .01]
    jitter[i] *= 5
    assert run_with(json.dumps(dict(jitter=jitter))) != run_with('{}')

PAPER = dict(alien='comb1', noise=(.5, .7), replace=.3, max_side=.3, unit='token', placement='even', donor_self=False, views=1,
             crop=(.05, 1.), flip=.5, jitter=(.1, .1, .1, .01), jitter_p=.3, blur_p=0., blocks=(6, 8, 10, 12), decoder_layers=2,
             decoder_act='relu', drop_path=.1, loss='l1', lr=5e-4, lr_end=1e-6, warmup=10, wd=.04, wd_end=.4, mom=.9, sqr_mom=.999,
             clip=3.)
OFFICIAL = dict(PAPER, noise=(.5, .75), unit='pixel', placement='authors', donor_self=True, views=2, blur=(.1, 2.), blur_p=.1,
                decoder_layers=3, decoder_act='gelu')

@pytest.mark.parametrize('name,want', dict(paper=PAPER, official=OFFICIAL).items())
def test_recipes_are_those_of_the_design(name, want):
    have = asdict(RECIPES[name])
    assert {k: have[k] for k in want} == want

# The same run ------------------------------------------------------------------------------------------------------

def test_same_seed_same_weights_and_the_global_state_is_left_alone():
    torch.manual_seed(1)
    a = fit(learner())
    torch.manual_seed(2)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    b = learner()
    b.fit_gmml(2)   # with the estimate of its cost, which must not matter
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()
    assert digest(a) == digest(b) != digest(fit(learner(seed=43)))

def checkpointed(tmp_path, n=2, **kw): return fit(learner(path=tmp_path, **kw), n, checkpoint=tmp_path/'ck')

def test_finished_run_is_not_run_again(tmp_path):
    a = checkpointed(tmp_path)
    assert digest(a) == digest(checkpointed(tmp_path))
    assert [o.name for o in (tmp_path/'ck').iterdir()] == ['finished']

def test_checkpoint_of_another_recipe(tmp_path):
    checkpointed(tmp_path)
    with pytest.raises(ValueError, match='another run, which has finished: replace was 0.3 and is 0.4.*Choose another checkpoint folder'):
        checkpointed(tmp_path, replace=.4)

@pytest.mark.parametrize('change', [dict(seed=7), dict(bs=4), dict(model_args=dict(TINY, embed_dim=32)), dict(patch_size=4),
                                    dict(x=images(24))], ids=lambda o: next(iter(o)))
def test_checkpoint_of_another_run(tmp_path, change):
    checkpointed(tmp_path)
    with pytest.raises(ValueError, match='another run.*Choose another checkpoint folder'): checkpointed(tmp_path, **change)

def test_checkpoint_of_another_length(tmp_path):
    checkpointed(tmp_path)
    with pytest.raises(ValueError, match='another run.*Choose another checkpoint folder'): checkpointed(tmp_path, 3)

@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
    "Two checkpoints of a run that was stopped in its last step but one, and the weights that it would have come to"
    d = tmp_path_factory.mktemp('stopped')
    with pytest.raises(KeyboardInterrupt): fit(learner(), checkpoint=Checkpoint(d, steps=1), cbs=StopAt(3))
    return d,digest(fit(learner()))

@pytest.mark.parametrize('file', ['model.safetensors', 'state.pt', 'config.json', 'rng.pt', 'checksums.json'])
@pytest.mark.parametrize('how', ['cut', 'gone'])
def test_damaged_checkpoint(stopped, tmp_path, capsys, file, how):
    "It is named and the one before is taken; when none is whole, that is an error"
    whole = stopped[1]
    shutil.copytree(stopped[0], tmp_path/'ck')
    first,last = sorted((tmp_path/'ck').iterdir())
    def spoil(f):
        if how == 'cut': f.write_bytes(f.read_bytes()[:len(f.read_bytes())//2])
        else: f.unlink()
    spoil(last/file)
    shutil.copytree(tmp_path/'ck', tmp_path/'worse')
    assert digest(checkpointed(tmp_path)) == whole
    said = capsys.readouterr().out
    assert f'{last} is damaged ({file}' in said and f'going on from {first}' in said
    shutil.rmtree(tmp_path/'ck'), (tmp_path/'worse').rename(tmp_path/'ck')
    spoil(first/file)
    with pytest.raises(ValueError, match='(?s)is whole. Remove'): checkpointed(tmp_path)

# Stops and casts ---------------------------------------------------------------------------------------------------

class Poison(Callback):
    "A weight that is no number, from step `at` on"
    order = 9
    def __init__(self, at): self.at = at
    def before_batch(self):
        if self.training and self.train_iter == self.at:
            with torch.no_grad(): self.model.decoder[-1].bias.fill_(float('nan'))

def test_non_finite_loss_stops(tmp_path):
    learn = learner(cbs=Poison(2))
    with pytest.raises(FloatingPointError, match=r'loss is nan at step \d+ \(epoch 1\), learning rate \d.*Lower the rate'): fit(learn, 3)
    assert len(learn.recorder.losses) == 3

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('loss', ['l1', 'l2'])
def test_casting(dtype, loss):
    learn = learner(alien='comb2', loss=loss, drop_path=0.)
    x = learn.gmml.normalise(torch.rand(8, 3, 12, 12))
    def once(cast):
        g = torch.Generator().manual_seed(0)
        with torch.autocast('cpu', dtype=dtype, enabled=cast):
            corrupted,mask = learn.gmml.alien(x, 2, generator=g)
            pred = learn.model(corrupted)
            assert pred.dtype == (dtype if cast else torch.float32)
            return learn.loss_func(pred, x, mask)
    full,half = once(False),once(True)
    assert half.dtype == torch.float32 and torch.isfinite(half) and abs(half - full) < .02*full

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_images_of_half_precision(dtype):
    learn = learner(alien='comb2')
    x = torch.rand(8, 3, 12, 12).to(dtype)
    corrupted,mask = learn.gmml.alien(x, 2)
    assert corrupted.dtype == dtype and torch.isfinite(corrupted).all()
    assert torch.equal(corrupted.masked_fill(mask, 0), x.masked_fill(mask, 0))

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_run_under_autocast(dtype):
    learn = learner(valid_pct=.25)
    with torch.autocast('cpu', dtype=dtype): fit(learn)
    assert np.isfinite(learn.recorder.values[-1]).all() and abs(learn.recorder.values[-1][1] - fit(learner(valid_pct=.25)).recorder.values[-1][1]) < .02

# Any image ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('c', [1, 3, 5])
@pytest.mark.parametrize('patch', [2, (2, 3)], ids=str)
def test_any_image(c, patch):
    learn = learner(images(24, 8, 12, c), valid_pct=.25, patch_size=patch, jitter=(.1, .1, 0., 0.), blur_p=.5)
    fit(learn, 1)
    o = learn.reconstruct(3)
    assert o['clean'].shape == o['restored'].shape == (3, c, 8, 12) and o['mask'].shape == (3, 1, 8, 12)
    ph,pw = learn.gmml.patch_size
    tokens = o['mask'].unflatten(2, (-1, ph)).unflatten(4, (-1, pw))   # whole tokens
    assert torch.equal(tokens.amax((3, 5)), tokens.amin((3, 5)))
    assert torch.isfinite(torch.tensor(learn.recorder.values[-1])).all()
    learn.show_reconstructions(2)

@pytest.mark.parametrize('c', [1, 3, 5])
def test_callback_on_a_batch(c):
    "The clean batch is the augmented one, and differs from the corrupted one inside the mask alone"
    seen = []
    class Look(Callback):
        order = 9.9
        def before_batch(self): seen.append((self.xb, self.yb))
    fit(learner(images(16, 8, 12, c), cbs=Look(), views=2), 1)
    for (corrupted,),(clean,mask) in seen:
        assert corrupted.shape == clean.shape == (16, c, 8, 12) and mask.shape == (16, 1, 8, 12) and mask.dtype == torch.bool
        differs = (corrupted != clean).any(1, keepdim=True)
        assert not (differs & ~mask).any() and differs.float().mean() > .1

def test_held_out_loss_is_comparable():
    "The same number for every batch size, and again after training on nothing"
    x = images(40)
    def held_out(bs):
        learn = learner(x, bs=bs, valid_pct=.5)
        with learn.no_bar(): return [learn.validate()[0] for _ in range(2)]
    a = held_out(4)
    assert a[0] == a[1]
    assert np.allclose(a, held_out(7), rtol=1e-5) and np.allclose(a, held_out(20), rtol=1e-5)

# fastai's habits ---------------------------------------------------------------------------------------------------

def test_export_and_load(tmp_path):
    learn = fit(learner(path=tmp_path))
    learn.export('m.pkl')
    with pytest.warns(UserWarning): again = load_learner(tmp_path/'m.pkl')
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(again.model.eval()(x), learn.model.eval()(x))
    assert again.gmml.recipe == learn.gmml.recipe and tuple(again.dls.size) == (12, 12)

def test_callbacks_of_fastai(tmp_path):
    learn = learner(images(24), valid_pct=.25, path=tmp_path, cbs=[SaveModelCallback(fname='best'), CSVLogger()])
    with learn.no_bar(): learn.fit_gmml(2)
    assert (tmp_path/'models/best.pth').exists()
    assert len((tmp_path/'history.csv').read_text().splitlines()) == 3

def test_lr_find_changes_nothing(tmp_path):
    learn = learner(path=tmp_path)
    before = digest(learn)
    with learn.no_bar(): found = learn.lr_find(num_it=12, show_plot=False)
    assert 0 < found.valley < 10 and digest(learn) == before
    fit(learn)
    assert digest(learn) != before

@pytest.mark.parametrize('cast', ['to_fp16', 'to_bf16', 'to_fp32'])
def test_mixed_precision_callbacks(cast):
    learn = getattr(learner(), cast)()
    assert np.isfinite(fit(learn, 1).recorder.losses).all()

def test_metrics_see_reconstruction_clean_and_mask():
    def outside(pred, clean, mask): return ((pred - clean).abs()*~mask).mean()
    learn = fit(learner(images(24), valid_pct=.25, metrics=outside), 1)
    assert learn.recorder.values[-1][2] > 0

def test_own_loop_of_fastai():
    "`fit_one_cycle` and `fit` train too, without the recipe's schedules"
    learn = learner()
    before = digest(learn)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-3)
    assert digest(learn) != before

def test_exported_encoder_is_the_encoder(tmp_path):
    learn = fit(learner(path=tmp_path))
    out = learn.export_encoder(tmp_path/'enc', note='a test')
    vit = timm.create_model(f'local-dir:{out}', pretrained=True).eval()
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad(): assert torch.equal(vit.forward_features(x), learn.model.encoder.vit.eval().forward_features(x))
    about = json.loads((out/'config.json').read_text())['gmml']
    assert about['note'] == 'a test' and about['epochs'] == 2 and about['recipe']['alien'] == 'comb1'

def test_before_it_starts_it_says_what_it_costs(capsys):
    learn = learner()
    with learn.no_bar(), learn.no_logging(): learn.fit_gmml(2)
    assert '16 images, 2 epochs, 4 steps of 8: about' in capsys.readouterr().out

def test_a_donor_is_never_the_image_s_other_view():
    "Two views of images that are one grey each: an image may be its own donor, as in the authors' script, one time in eight"
    x = np.repeat(np.arange(64, dtype=np.uint8)*3 + 20, 16*16*3).reshape(64, 16, 16, 3)
    learn = learner(x, recipe='official', patch_size=4, alien='replace', jitter_p=0., blur_p=0., crop=(1., 1.), flip=0.)
    seen = []
    class Look(Callback):
        order = 9.9
        def before_batch(self): seen.append((self.xb[0] == self.yb[0]).flatten(1).all(1))
    fit(learn, 60, cbs=Look())
    same = torch.cat(seen)
    assert abs(same.float().mean() - 1/8) < 4*(1/8*7/8/len(same))**.5

def test_doors_of_fastai_with_files(tmp_path):
    "Files have sizes of their own, which go with their pixels"
    for i in range(12): Image.fromarray(images(1, 20 + i, 24)[0]).save(tmp_path/f'{i}.png')
    dls = pretrain_dls(tmp_path, size=12, bs=4, valid_pct=.25, device='cpu')
    learn = gmml_learner(dls, 'vit_tiny_patch16_224', patch_size=2, model_args=TINY, blocks=(1, 2), path=tmp_path)
    with learn.no_bar(): assert 'Total params' in str(learn.summary())
    assert learn.predict(tmp_path/'3.png')['restored'].shape == (3, 12, 12)
    with learn.no_bar(): assert learn.get_preds(dl=learn.dls.test_dl([tmp_path/'3.png', tmp_path/'4.png']))[0].shape == (2, 3, 12, 12)
    learn.show_results(), learn.show_reconstructions(2, dl=learn.dls.test_dl([tmp_path/'3.png', tmp_path/'4.png']))
    learn.export('m.pkl')
    with pytest.warns(UserWarning): again = load_learner(tmp_path/'m.pkl')
    with pytest.raises(ValueError, match='no images.*give it some'): again.predict(tmp_path/'3.png')
    again.dls = dls
    assert torch.equal(again.predict(tmp_path/'3.png')['restored'], learn.predict(tmp_path/'3.png')['restored'])


# Steps of several batches, rows of the log ------------------------------------------------------------------------------

def test_rows_after_so_many_steps_and_rates_of_accumulated_batches():
    learn = fit(learner(valid_pct=.25, bs=4, accumulate=3), 5, log_steps=7)     # three batches an epoch
    assert learn.recorder.iters == [9, 15]                                      # the first epoch after seven steps, and the last
    assert max(learn.recorder.hps['lr']) == pytest.approx(5e-4*12/256, rel=.1)   # the rate follows the images of a step
    with pytest.raises(ValueError, match='whole number'): learner(accumulate=0)
    with pytest.raises(ValueError, match='whole number'): fit(learn, 1, log_steps=0)
