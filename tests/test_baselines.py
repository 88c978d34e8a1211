"MAE, SimMIM and the plain autoencoder beside what they are said to be: places, losses, compiled and half-precision steps, interrupted runs"
import pytest, torch
import torch.nn.functional as F
from torch import nn
from gmml_nb.baselines import MAE, METHODS, MAEDecoder, NormedPatchLoss, Squares, embed_tokens, token_mask
from gmml_nb.corruption import Zeros
from gmml_nb.data import pretrain_dls
from gmml_nb.datasets import get_dataset
from gmml_nb.vit import GMMLEncoder
from callbacks import StopAt

ARCH,ENC = 'vit_tiny_patch16_224', dict(img_size=(16, 24), patch_size=4, in_chans=2, drop_path=0., embed_dim=32, depth=2, num_heads=2)

def seeded(): return torch.Generator().manual_seed(1)

@pytest.fixture
def hidden():
    "Five images of 4 x 6 tokens, three quarters of which are hidden"
    torch.manual_seed(0)
    x = torch.randn(5, 2, 16, 24)
    return x, Zeros(.75, max_side=0)(x, 4)[1]

def learner(method, n=64, **kw):
    dls = pretrain_dls(get_dataset('digits').items[:n], size=8, bs=8, valid_pct=.25, seed=0, device='cpu')
    if method == 'mae': kw = dict(decoder_depth=2, **kw)
    return METHODS[method](dls, ARCH, patch_size=2, blocks=(1, 2), seed=0, lr=8e-3, pos_init='sincos', model_args=dict(depth=2, embed_dim=48, num_heads=3), **kw)

def step_of(method):
    "A learner, and the arguments of one step"
    o = learner(method)
    xb = torch.randn(4, 1, 8, 8, generator=seeded())
    return o, xb, *o.gmml.alien(xb, o.gmml.patch_size, generator=seeded())

def test_same_generator_same_squares():
    x = torch.randn(2, 3, 224, 224)
    a,b = (Squares(.6, max_side=0)(x, 16, generator=seeded())[1] for _ in range(2))
    assert torch.equal(a, b)

def test_everything_goes_back_to_its_place(hidden):
    "With blocks and decoder that do nothing, each visible place holds the embedding of its own patch, and each hidden place the mask token"
    x,mask = hidden
    mae = MAE(GMMLEncoder(ARCH, (1, 2), **ENC), decoder_dim=32)
    vit,dec = mae.encoder.vit,mae.decoder
    vit.blocks = nn.Sequential()
    dec.embed = dec.blocks = dec.norm = dec.head = nn.Identity()
    dec.pos.zero_()
    with torch.no_grad(): out = mae(x, mask).flatten(2).transpose(1, 2)          # (bs, n, d)
    own,hid = vit.norm(embed_tokens(vit, x))[:, 1:],token_mask(mask, (4, 4))
    assert torch.equal(out[~hid], own[~hid]) and torch.equal(out[hid], dec.mask_token[0].expand(hid.sum(), -1))

def test_widths_of_the_decoder():
    widths = [MAEDecoder(GMMLEncoder(f'vit_{o}_patch16_224', (1,), depth=1, img_size=32), 1).embed.out_features for o in ('tiny', 'small', 'base')]
    assert widths == [128, 256, 512]

@pytest.mark.parametrize('kw,said', [(dict(decoder_dim=40), 'multiple of 32'), (dict(ratio=1.), 'leaves none of 24'), (dict(ratio=(.5, .7)), 'one number')], ids=str)
def test_what_mae_cannot_be(kw, said):
    with pytest.raises(ValueError, match=said): MAE(GMMLEncoder(ARCH, (1, 2), **ENC), **kw)

def test_loss_of_normalised_patches(hidden):
    "Against the same on patches as rows, as MAE's paper describes it"
    x,mask = hidden
    pred = torch.randn_like(x)
    t,p = (F.unfold(o, 4, stride=4) for o in (x, pred))                                        # (bs, C*ph*pw, n)
    t = (t - t.mean(1, keepdim=True))/(t.var(1, keepdim=True) + 1e-6).sqrt()
    want = (p - t).square().mean(1)[token_mask(mask, (4, 4))].mean()
    assert NormedPatchLoss((4, 4))(pred, x, mask).item() == pytest.approx(want.item(), abs=1e-5)

@pytest.mark.parametrize('method', METHODS)
def test_a_step_is_one_graph(method):
    "Forward pass and loss, without a break"
    o,xb,corrupted,mask = step_of(method)
    o.model.eval()
    step = lambda x, corrupted, mask: o.loss_func(o.model(*o.gmml.inputs(corrupted, mask)), x, mask)
    assert torch.equal(torch.compile(step, fullgraph=True, backend='eager')(xb, corrupted, mask), step(xb, corrupted, mask))

@pytest.mark.parametrize('method', METHODS)
def test_half_precision_is_near(method):
    o,xb,corrupted,mask = step_of(method)
    args = o.model.eval() and o.gmml.inputs(corrupted, mask)
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16): half = o.loss_func(o.model(*args), xb, mask)
    with torch.no_grad(): whole = o.loss_func(o.model(*args), xb, mask)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(whole.item(), abs=.05)

def fit(method, checkpoint=None, cbs=None, **kw):
    o = learner(method, 32, drop_path=.2, **kw)
    with o.no_bar(), o.no_logging(): o.fit_gmml(2, checkpoint=checkpoint, cbs=cbs, estimate=False)
    return o

@pytest.mark.parametrize('method', METHODS)
def test_interrupted_runs_go_on(method, tmp_path):
    with pytest.raises(KeyboardInterrupt): fit(method, tmp_path/'ck', StopAt(4))
    whole,again = fit(method),fit(method, tmp_path/'ck')
    assert all(torch.equal(a, b) for a,b in zip(whole.model.state_dict().values(), again.model.state_dict().values()))
    assert whole.recorder.values == again.recorder.values

def test_a_run_knows_its_method(tmp_path):
    fit('mae', tmp_path/'ck')
    with pytest.raises(ValueError, match="method was 'mae' and is 'simmim'"): fit('simmim', tmp_path/'ck')
    with pytest.raises(ValueError, match='ratio was 0.75 and is 0.5'): fit('mae', tmp_path/'ck', ratio=.5)
