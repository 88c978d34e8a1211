"The reconstruction loss kept while fine-tuning: what it adds, to what, and that nothing else changes"
import json, re
from dataclasses import replace
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.learner import load_learner
from fastai.torch_core import get_model, rank_distrib
from timm.models import VisionTransformer
from gmml_nb import export   # `export_classifier`
from PIL import Image
from gmml_nb.cli import gmml_finetune
from gmml_nb.data import finetune_dls, pretrain_dls
from gmml_nb.experiment import Experiment, change
from gmml_nb.finetune import finetune_learner
from gmml_nb.keep import KeepLoss, check_kept
from gmml_nb.pretrain import gmml_learner
from gmml_nb.recipe import Recipe
from gmml_nb.training import all_processes
from common import code, ranks

ARCH,TINY = 'vit_tiny_patch16_224', dict(embed_dim=16, depth=3, num_heads=2)

def images(n=40): return np.random.RandomState(0).randint(0, 256, (n, 8, 8, 3), dtype=np.uint8)
def plain(n=40, bs=8, **kw): return pretrain_dls(images(n), size=8, bs=bs, valid_pct=0, device='cpu', **kw)
def labelled(n=16): return finetune_dls((images(n), np.arange(n) % 4), size=8, bs=4, recipe=None, valid_pct=0, device='cpu')

def learner(encoder=None, unlabelled=True, **kw):
    if encoder is None: kw = dict(arch=ARCH, model_args=dict(TINY, patch_size=2), **kw)
    if unlabelled is True: unlabelled = plain()
    return finetune_learner(labelled(), encoder, unlabelled=unlabelled, **{'lr': .05, **kw})

def fit(learn, n=2, cbs=None):
    with learn.no_bar(), learn.no_logging(): learn.fit_finetune(n, cbs=cbs)
    return learn

def equal(a, b): return all(torch.equal(x, y) for x,y in zip(a.state_dict().values(), b.state_dict().values()))

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    learn = gmml_learner(plain(), ARCH, patch_size=2, blocks=(2, 3), model_args=TINY, alien='noise', decoder_layers=1)
    with learn.no_bar(), learn.no_logging(): learn.fit_gmml(1, estimate=False)
    return learn.export_encoder(tmp_path_factory.mktemp('e')/'enc')


class Seen(Callback):
    "Images that the decoder restores, and what is added to the classifier's loss"
    def before_fit(self): self.n,self.handle = [],self.keep_loss.auto.register_forward_hook(lambda m, x, y: self.n.append(len(y)))
    def after_fit(self): self.handle.remove()

def test_unlabelled_and_labelled_are_restored():
    seen = Seen()
    learn = fit(learner(), 3, seen)
    assert seen.n == [8 + 4]*12 and len(learn.keep_loss.losses) == 12 and all(torch.isfinite(o) for o in learn.keep_loss.losses)

def test_each_unlabelled_image_once_a_pass():
    "40 images in batches of 8: five steps see all of them, the next five again, in another order"
    learn,seen = learner(),[]
    own = learn.keep_loss.clean
    learn.keep_loss.clean = lambda x, g: seen.append(x.as_subclass(torch.Tensor)[:, :, 0, 0].tolist()) or own(x, g)
    fit(learn, 3)
    first,second = (sorted(map(tuple, sum(seen[i:i+5], []))) for i in (0, 5))
    assert first == second and len(set(first)) == 40 and seen[:5] != seen[5:10]

def test_gradient_is_that_of_the_sum():
    "By hand: the classifier's gradient and the weighted reconstruction's"
    def grads(keep):
        learn,got = learner(keep=keep, drop_path=0., mixup=0., cutmix=0.),{}
        class Take(Callback):
            order = 100
            def before_step(self):
                if self.train_iter == 0: got.update({n: p.grad.clone() for n,p in [*self.model.named_parameters(), *self.keep_loss.decoder.named_parameters()]})
        fit(learn, 1, Take())
        return got
    none,one,three = map(grads, (0., 1., 3.))
    for k in none: assert torch.allclose(three[k] - none[k], 3*(one[k] - none[k]), atol=1e-5), k
    assert all(none[k].abs().max() == 0 for k in none if re.match(r'\d', k)) and (one['blocks.0.attn.qkv.weight'] - none['blocks.0.attn.qkv.weight']).abs().max() > 1e-5
    assert torch.allclose(one['head.weight'], none['head.weight'], atol=1e-6)   # which restores nothing

def test_weight_zero_is_without(folder):
    a,b = (fit(learner(folder, u, drop_path=0., **kw)) for u,kw in ((True, dict(keep=0.)), (None, {})))
    assert equal(a.model, b.model)
    assert not equal(b.model, fit(learner(folder, drop_path=0.)).model)

def test_weight_along_a_cosine():
    ws = []
    class Look(Callback):
        order = KeepLoss.order + .05
        def after_loss(self): ws.append(((self.loss_grad - self.learn.loss)/self.keep_loss.losses[-1]).item())
    fit(learner(keep=(2., 1.)), 3, Look())
    assert ws == pytest.approx([1 + (1 + np.cos(np.pi*i/12))/2 for i in range(12)], abs=1e-3)

def test_recipe_and_decoder_come_from_the_folder(folder, capsys):
    learn = learner(folder)
    assert 'tensors of the decoder loaded' in capsys.readouterr().out and learn.keep_loss.recipe.alien == 'noise' and learn.keep_loss.auto.encoder.blocks == (2, 3)
    again = gmml_learner(plain(), f'local-dir:{folder}', pretrained=True, blocks=(2, 3), decoder_layers=1)
    assert equal(learn.keep_loss.decoder, again.model.decoder) and equal(learner(again).keep_loss.decoder, again.model.decoder)
    assert not equal(learner(folder, weights=False).keep_loss.decoder, again.model.decoder)
    assert learner().keep_loss.recipe.alien == 'comb1' and learner().keep_loss.auto.encoder.blocks == (2, 3)   # no pretraining: the paper's, on the upper half

def test_the_decoder_trains_and_is_kept(folder, tmp_path):
    learn = learner(folder)
    before = {k: v.clone() for k,v in learn.keep_loss.decoder.state_dict().items()}
    fit(learn)
    assert all(not torch.equal(v, before[k]) for k,v in learn.keep_loss.decoder.state_dict().items())
    assert type(learn.model) is VisionTransformer and not any('decoder' in k for k in learn.model.state_dict())
    learn.freeze()
    fit(learn, 1)
    assert {id(p) for p in learn.keep_loss.decoder.parameters()} <= {id(p) for ps in learn.opt.param_lists for p in ps}

def test_export_leaves_the_images_at_home(folder, tmp_path):
    small,large = (learner(folder, unlabelled=plain(n)) for n in (40, 4000))
    sizes = []
    for i,learn in enumerate((small, large)):
        learn.path = tmp_path
        fit(learn, 1).export(f'{i}.pkl')
        sizes.append((tmp_path/f'{i}.pkl').stat().st_size)
    assert abs(sizes[0] - sizes[1]) < 20_000
    again = load_learner(tmp_path/'1.pkl')
    assert again.predict(images(1)[0])[0] == large.predict(images(1)[0])[0]
    facts = json.loads((again.export_classifier(tmp_path/'c')/'config.json').read_text())['finetune']
    assert facts['unlabelled'] == 4000 and facts['recipe']['keep'] == 1. and facts['kept']['blocks'] == list(large.keep_loss.recipe.blocks)

def test_refused(folder):
    for kw,words in ((dict(unlabelled='photos'), "unlabelled=pretrain_dls"), (dict(unlabelled=labelled()), 'without labels'), (dict(unlabelled=None, keep=.5), 'give unlabelled='),
                     (dict(keep=-1), 'keep=-1'), (dict(keep=(1., 2., 3.)), 'keep='), (dict(unlabelled=pretrain_dls(images(), size=16, bs=8, device='cpu')), 'same size'), (dict(keep_recipe='papr'), "Did you mean 'paper'")):
        with pytest.raises(ValueError, match=re.escape(words)): learner(folder, **kw)

def test_depth_of_the_two_must_agree():
    "16-bit files on two scales would be two kinds of images"
    deep = plain()
    deep.depth = {'16-bit': [0, 4095]}
    with pytest.raises(ValueError, match=re.escape("give depth={'16-bit': [0, 414]} to pretrain_dls")): check_kept(learner(unlabelled=None).model, deep, {'16-bit': [0, 414]})
    check_kept(learner(unlabelled=None).model, deep, {'16-bit': [0, 4095]})

def test_loaders_stay_where_they_are():
    u = plain()
    before = u.train.epoch, u.train.skip
    fit(learner(unlabelled=u))
    assert (u.train.epoch, u.train.skip) == before

def test_a_finished_run_is_known_by_images_and_recipe(folder, tmp_path):
    "Other unlabelled images, or another corruption, are another run"
    def run(**kw):
        learn = learner(folder, **kw)
        with learn.no_bar(), learn.no_logging(): learn.fit_finetune(1, checkpoint=tmp_path/'ck')
    run(), run()
    other = pretrain_dls(images()[:, ::-1].copy(), size=8, bs=8, valid_pct=0, device='cpu')
    for kw in (dict(unlabelled=other), dict(keep_recipe=Recipe(blocks=(2, 3)))):
        with pytest.raises(ValueError, match='another run'): run(**kw)

def test_two_processes_agree(folder, tmp_path):
    "The same weights on both, of the decoder as well; each its own images"
    def run():
        learn = learner(folder, recipe='deit')
        seen,own = [],learn.keep_loss.clean
        learn.keep_loss.clean = lambda x, g: seen.append(x.as_subclass(torch.Tensor)[:, :, 0, 0].tolist()) or own(x, g)
        with learn.no_bar(), learn.no_logging(), all_processes(learn): learn.fit_finetune(2)
        torch.save(dict(model=get_model(learn.model).state_dict(), decoder=learn.keep_loss.decoder.state_dict(), seen=seen), tmp_path/f'{rank_distrib()}.pt')
    assert [code(p) for p in ranks(run)] == [0, 0]
    a,b = (torch.load(tmp_path/f'{i}.pt') for i in (0, 1))
    for k in ('model', 'decoder'): assert all(torch.equal(a[k][n], b[k][n]) for n in a[k])
    assert not {tuple(o) for o in a['seen'][0]} & {tuple(o) for o in b['seen'][0]}

def test_an_experiment_keeps_it(tmp_path):
    "From random weights, too; a run of its own, which shares the pretraining, and whose unlabelled images are counted"
    e = Experiment(size=8, patch_size=2, labels=20, images=100, epochs=1, bs=50, finetune_epochs=2, finetune_bs=10, augment=None,
                   model_args=TINY, change=dict(blocks=(2, 3), lr=.008), finetune=dict(lr=.05, crop_pct=1.))
    k = replace(e, kept=True)
    assert k.id != e.id and k.pretraining_id == e.pretraining_id and replace(e, kept=False).id == e.id
    r = replace(k, method='random')
    assert change(r, lr=.01).id != r.id and change(replace(r, kept=False), lr=.01).id == replace(r, kept=False).id   # the recipe acts on what is kept
    a,b = k.run(tmp_path), r.run(tmp_path)
    assert a['images_finetuning'] == b['images_finetuning'] == 2*2*(10 + 50) and (a['images_pretraining'], b['images_pretraining']) == (100, 0)
    assert a['value'] != e.run(tmp_path)['value'] or b['value'] != replace(r, kept=False).run(tmp_path)['value']
    with pytest.raises(ValueError, match='kept=1'): replace(e, kept=1).check()

def test_the_command(tmp_path, capsys):
    "Few labels, and a folder of images without"
    for i,x in enumerate(images(30)):
        d = tmp_path/'photos'/f'{"ab"[i % 2]}' if i < 10 else tmp_path/'more'
        d.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(d/f'{i}.png')
    opt = dict(out=tmp_path/'c', epochs=1, bs=4, size='8', patch_size='2', embed_dim=16, depth=3, num_heads=2, lr=.05)
    learn = gmml_finetune(tmp_path/'photos', unlabelled=tmp_path/'more', change='keep=.5', **opt)
    assert len(learn.keep_loss.source.dataset) == 20 and learn.recipe.keep == .5 and 'the reconstruction loss is kept: 20 unlabelled images' in capsys.readouterr().out
    assert json.loads((tmp_path/'c/settings.json').read_text())['options']['unlabelled'] == str(tmp_path/'more')
    with pytest.raises(ValueError, match='is neither a folder here nor a dataset'): gmml_finetune(tmp_path/'photos', unlabelled='mor', **opt)
