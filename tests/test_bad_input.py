"Bad input: a ValueError in seconds that names the value and says what to do, and nothing written"
import os, subprocess, sys, time
from contextlib import contextmanager
import numpy as np, pytest, torch
from PIL import Image
from gmml_nb.corruption import Noise, Replace, Zeros, group_mask
from gmml_nb.data import finetune_dls, pretrain_dls
from gmml_nb.finetune import finetune_learner
from gmml_nb.pretrain import gmml_learner
from gmml_nb.vit import GMMLEncoder

TINY = dict(embed_dim=16, depth=2, num_heads=2)

@contextmanager
def refused(*words, under=5):
    "A `ValueError` with all these words, and in time"
    t = time.process_time()   # others may be using the machine
    with pytest.raises(ValueError) as e: yield
    assert time.process_time() - t < under
    text = str(e.value)
    assert not [w for w in words if str(w) not in text], text

def digits(**kw): return pretrain_dls('digits', size=8, bs=16, device='cpu', **kw)
def learner(dls=None, patch_size=2, **kw):
    return gmml_learner(dls or digits(), 'vit_tiny_patch16_224', patch_size=patch_size, **{**dict(model_args=TINY, blocks=(1, 2)), **kw})

@pytest.fixture
def broken(tmp_path):
    "Three good pictures, and three files that are none"
    root = tmp_path/'photos'
    (root/'a').mkdir(parents=True), (root/'b').mkdir()
    x = np.random.RandomState(0).randint(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    for i,o in enumerate(x): Image.fromarray(o).save(root/'ab'[i%2]/f'good{i}.jpg', quality=95)
    whole = (root/'a/good0.jpg').read_bytes()
    (root/'a/broken.jpg').write_bytes(whole[:len(whole)//2])
    (root/'b/notes.jpg').write_text('these are only words\n')
    (root/'b/zero.jpg').write_bytes(b'')
    return root

BAD = 'broken.jpg', 'notes.jpg', 'zero.jpg'

@pytest.mark.parametrize('make', [pretrain_dls, finetune_dls])
def test_empty_folder(tmp_path, make):
    with refused(tmp_path, 'no images', '.jpg'): make(tmp_path, size=32)

@pytest.mark.parametrize('make', [pretrain_dls, finetune_dls])
def test_no_folder(tmp_path, make):
    with refused('nowhere'): make(tmp_path/'nowhere', size=32)

@pytest.mark.parametrize('make', [pretrain_dls, finetune_dls])
def test_broken_files_are_all_named(broken, make):
    with refused(*BAD, '3', "on_error='skip'"): make(broken, size=32, bs=2)

@pytest.mark.parametrize('make', [pretrain_dls, finetune_dls])
def test_broken_files_are_left_out_when_asked(broken, make):
    with pytest.warns(UserWarning) as w: dls = make(broken, size=32, bs=2, on_error='skip', valid_pct=.34, device='cpu')
    assert all(any(b in str(o.message) for o in w) for b in BAD)
    assert len(dls.train.dataset) + len(dls.valid.dataset) == 6

def test_only_broken_files(broken):
    for o in broken.rglob('good*'): o.unlink()
    with refused(*BAD): pretrain_dls(broken, size=32, on_error='skip')

@pytest.mark.parametrize('kw,said', [(dict(valid_pct=1.5), 'valid_pct=1.5'), (dict(size='big'), "size='big'"), (dict(store=0), 'store=0'), (dict(cache='tape'), "cache='tape'"),
    (dict(on_error='ignore'), "not 'ignore'"), (dict(bs=0), 'bs=0'), (dict(bs=2.5), 'bs=2.5'), (dict(stats=([.5]*3, [.2]*3)), '3 and 3 channels'), (dict(idxs=[1437]), 'there are 1437'),
    (dict(seed=-1), 'seed=-1'), (dict(num_workers=.5), 'num_workers=0.5'), (dict(valid_pct=True), 'valid_pct=True')], ids=str)
def test_loaders_that_cannot_be(kw, said):
    with refused(said): pretrain_dls('digits', **{**dict(size=8), **kw})

@pytest.mark.parametrize('kw,said', [(dict(labels=5), 'labels=5'), (dict(labels=5000), 'labels=5000'), (dict(stats=([77.], [95.])), 'divide them by 255'), (dict(valid_pct=20), 'for 20 % give 0.2'),
    (dict(cache='disk'), "not 'disk'"), (dict(recipe='diet'), "Did you mean 'deit'")], ids=str)
def test_labelled_loaders_that_cannot_be(kw, said):
    with refused(said): finetune_dls('digits', **{**dict(size=8), **kw})

def test_channels(broken):
    with refused("take 'light'"): finetune_dls((torch.rand(40, 4, 8, 8), [0, 1]*20), size=8)
    for o in (broken, np.zeros((4, 8, 8, 3), np.uint8)):
        with refused('in_chans=2'): pretrain_dls(o, size=8, in_chans=2)

@pytest.mark.parametrize('size,patch', [(30, 16), ((32, 30), 16), (9, 2), (8, (2, 3))], ids=str)
def test_size_and_patch(size, patch):
    dls = pretrain_dls('digits', size=size, device='cpu')
    with refused('not a multiple of the patch', tuple(dls.size), 'take'): learner(dls, patch)

def test_corruption_of_images_that_patches_do_not_divide():
    with refused('30x32', '16x16', 'resize or crop'): Noise(.5)(torch.randn(2, 3, 30, 32), 16)

@pytest.mark.parametrize('blocks', [(1, 3), (0, 1), 12, ()], ids=str)
def test_blocks_outside_the_depth(blocks):
    with refused('2 blocks', 'from 1 to 2', 'for example'): learner(blocks=blocks)
    with refused('2 blocks', 'from 1 to 2'): GMMLEncoder('vit_tiny_patch16_224', blocks, **TINY)

@pytest.mark.parametrize('ratio', [1.5, -.1, (.5, 1.5), (.7, .5), float('nan'), 'half'], ids=str)
def test_ratio(ratio):
    for kind in (Zeros, Noise, Replace):
        with refused(repr(ratio), 'from 0 to 1'): kind(ratio)
    with refused(repr(ratio), 'from 0 to 1'): group_mask(2, 4, ratio)
    for field in ('zeros', 'noise', 'replace'):
        with refused(field): learner(**{field: ratio})

def test_encoder_of_another_width(tmp_path):
    out = learner().export_encoder(tmp_path/'enc')
    dls = finetune_dls('digits', size=8, bs=16, labels=50, recipe=None, device='cpu')
    with refused('0 of', 'encoder tensors match', '(1, 1, 24)', '(1, 1, 16)', 'Leave arch and model_args to the encoder'):
        finetune_learner(dls, out, arch='vit_tiny_patch16_224', model_args=dict(TINY, embed_dim=24, patch_size=2))

def test_label_free_batch(tmp_path):
    with refused('without labels', 'finetune_dls'): finetune_learner(digits(), None, arch='vit_tiny_patch16_224', model_args=dict(TINY, patch_size=2))

def test_labelled_batch_for_pretraining():
    dls = finetune_dls('digits', size=8, bs=16, labels=50, recipe=None, device='cpu')
    with refused('pretrain_dls'): learner(dls)

@pytest.mark.parametrize('name,near', [('papr', 'paper'), ('offical', 'official'), ('Paper', 'paper')])
def test_recipe_with_a_typo(name, near):
    with refused(repr(name), f'Did you mean {near!r}?', 'paper, official'): learner(recipe=name)

def test_other_typos():
    with refused("'nois'", "Did you mean 'noise'?"): learner(nois=.5)
    with refused("'comb3'", 'Did you mean', 'comb1'): learner(alien='comb3')
    with refused("'digit'", 'digits'): pretrain_dls('digit')
    with refused("'vit_tiny_patch16_244'", 'vit_tiny_patch16_224'): gmml_learner(digits(), 'vit_tiny_patch16_244')
    with refused("'l3'", 'l1, l2'): learner(loss='l3')
    with refused("'rleu'", "Did you mean 'relu'?"): learner(decoder_act='rleu')

def test_length_of_a_run():
    for n in (0, -1, 1.5, '3'):
        with refused(f'n_epoch={n!r}', '1 or more'): learner().fit_gmml(n)

@pytest.mark.parametrize('n', [0, -1, 1.5])
def test_length_of_fine_tuning(n):
    dls = finetune_dls('digits', size=8, bs=16, labels=50, recipe=None, device='cpu')
    with refused(f'n_epoch={n!r}', '1 or more'):
        finetune_learner(dls, None, arch='vit_tiny_patch16_224', model_args=dict(TINY, patch_size=2)).fit_finetune(n)

def test_half_a_run_is_never_left(tmp_path):
    "What is refused writes nothing"
    learn = learner(path=tmp_path)
    with refused('n_epoch=0'): learn.fit_gmml(0, checkpoint=tmp_path/'ck')
    with refused('0 to 1'): learner(path=tmp_path, noise=1.5).fit_gmml(1, checkpoint=tmp_path/'ck')
    assert not list(tmp_path.iterdir())

def test_batch_of_one_and_a_donor():
    dls = pretrain_dls('digits', size=8, bs=1, device='cpu')
    with refused('batch has 1', 'larger batch'):
        with learner(dls, alien='replace').no_bar() as learn: learn.fit_gmml(1)
