"Each family of timm's plain transformers is pretrained, exported, read by timm alone, fine-tuned, at another size too; all others are refused before any training"
import contextlib, io, json
import pytest, timm, torch
from timm.models import save_for_hf
from families import FAMILIES, REFUSED, loaders, tiny, try_family
from gmml_nb.all import GMMLEncoder, features, finetune_learner
from gmml_nb.baselines import MAE, mae_learner, simmim_learner
from gmml_nb.convert import convert_checkpoint
from gmml_nb.finetune import depth_groups, levels
from gmml_nb.visualise import attention_weights
from gmml_nb.vit import PLAIN, resample_tables
from gmml_nb.weights import load_encoder, write_model

CLASSES = 'vit_small_patch16_dinov3', 'eva02_tiny_patch14_224', 'beitv2_base_patch16_224', 'vit_relpos_base_patch16_cls_224'

@pytest.fixture(scope='module')
def dls():
    with contextlib.redirect_stdout(io.StringIO()): return loaders()

def encoder(arch, blocks=(1, 2), **kw): return GMMLEncoder(arch, blocks, **{**dict(img_size=32, patch_size=8, drop_path=0.), **tiny(arch), **kw}).eval()

@pytest.mark.parametrize('arch', FAMILIES.values(), ids=FAMILIES)
def test_a_family_from_pretraining_to_another_size(arch, dls, tmp_path):
    row = try_family(arch, tmp_path/'m', dls)
    rest = {k: row.pop(k) for k in ('simmim', 'mae', 'attention')}
    assert {k: row[k] for k in ('pretrain', 'load', 'finetune', 'size')} == dict.fromkeys(('pretrain', 'load', 'finetune', 'size'), 'works')
    assert rest['simmim'] == 'works'
    assert rest['mae'] == 'works' if row['positions'] == 'absolute' else 'MAE shows them the visible patches alone' in rest['mae']
    assert rest['attention'] == 'works' or 'no attention of its own' in rest['attention'] and 'Parallel' in rest['attention']

@pytest.mark.parametrize('arch', REFUSED.values(), ids=REFUSED)
def test_what_is_no_plain_transformer_is_refused_in_a_sentence(arch):
    with torch.device('meta'), pytest.raises(ValueError, match='such as vit_small_patch16_224') as e: GMMLEncoder(arch, pos_init='sincos')
    assert len(str(e.value)) < 400

def test_all_classes_are_among_the_families():
    with torch.device('meta'): kinds = {type(timm.create_model(o, **tiny(o))) for o in FAMILIES.values()}
    assert all(any(issubclass(k, o) for k in kinds) for o in PLAIN)

@pytest.mark.parametrize('arch', [*CLASSES, 'beit3_base_patch16_224', 'eva_giant_patch14_224'])
def test_weights_in_the_hubs_format(arch, tmp_path):
    "As timm publishes them: with a head, and often with a norm that comes after the pooling"
    kw,x = dict(tiny(arch), img_size=32, patch_size=8),torch.randn(2, 3, 32, 32)
    vit = timm.create_model(arch, num_classes=5, **kw).eval()
    save_for_hf(vit, tmp_path, model_args=kw, safe_serialization=True)
    with torch.no_grad():
        last = vit.fc_norm(vit.forward_features(x)[:, vit.num_prefix_tokens:])
        start = GMMLEncoder(str(tmp_path), (2,), pretrained=True).eval()
        assert torch.allclose(start(x).flatten(2).mT, last, atol=1e-6)
        for pool in (None, 'token', 'avg', 'both'):
            model = load_encoder(tmp_path, 3, img_size=(48, 32), pool=pool).eval()
            assert model(torch.randn(2, 3, 48, 32)).shape == (2, 3)
        token = load_encoder(tmp_path, 3, pool='token').eval()
        assert torch.allclose(token.forward_head(token.forward_features(x), pre_logits=True), vit.fc_norm(vit.forward_features(x))[:, 0], atol=1e-6)

@pytest.mark.parametrize('arch', CLASSES)
def test_few_labels_and_a_classifier_that_timm_reads(arch, dls, tmp_path):
    enc,(pre,fine,_),x = encoder(arch),dls,torch.randn(2, 3, 32, 32)
    write_model(enc.vit, tmp_path/'m', ([.5]*3, [.5]*3), enc.model_args)
    learn = finetune_learner(fine, tmp_path/'m', recipe='few', head='probe', unlabelled=pre, layer_decay=.5)
    with learn.no_bar(), learn.no_logging(): learn.fit_finetune(1)
    learn.export_classifier(tmp_path/'c')
    alone = timm.create_model(f'local-dir:{tmp_path}/c', pretrained=True).eval()
    with torch.no_grad(): assert torch.equal(alone(x), learn.model.eval().cpu()(x))
    assert features(tmp_path/'m', fine.valid)[0].shape == features(tmp_path/'m', fine.valid, pool='token')[0].shape == (6, 32)

@pytest.mark.parametrize('arch', [*CLASSES, 'vit_small_patch16_rope_mixed_224', 'vit_srelpos_small_patch16_224'])
def test_every_parameter_has_a_level(arch):
    model = timm.create_model(arch, num_classes=3, img_size=32, patch_size=8, **tiny(arch))
    groups,names = depth_groups(model, 1., .5),{id(p): n for n,p in model.named_parameters()}
    assert sorted(names[id(p)] for g in groups for p in g['params']) == sorted(names.values())
    last = {names[id(p)].split('.')[0] for i in levels(model)[-1] for p in groups[i]['params']}
    assert last <= {'head', 'norm', 'fc_norm'}

@pytest.mark.parametrize('arch', CLASSES)
def test_attention_is_what_the_block_computes_with(arch):
    enc,x,seen = encoder(arch),torch.randn(2, 3, 32, 32),[]
    attn = enc.vit.blocks[1].attn
    hook = attn.register_forward_hook(lambda m, args, kw, o: seen.append((args, kw, o)), with_kwargs=True)
    with torch.no_grad(): enc(x)
    hook.remove()
    (args,kw,out), = seen
    with torch.no_grad(): a = attention_weights(attn, *args, **kw)                               # (bs, heads, n, n)
    assert torch.allclose(a.sum(-1), torch.ones(())) and attn.fused_attn and not attn.attn_drop._forward_pre_hooks
    assert a.shape == (2, 2, 16 + enc.vit.num_prefix_tokens, 16 + enc.vit.num_prefix_tokens)
    d = args[0].shape[-1]
    if hasattr(attn, 'v_proj') and attn.v_proj is not None: v = attn.v_proj(args[0])
    else:
        v = torch.nn.functional.linear(args[0], attn.qkv.weight[2*d:], getattr(attn, 'v_bias', None))
        if attn.qkv.bias is not None: v = v + attn.qkv.bias[2*d:]
    with torch.no_grad(): mixed = (a @ v.unflatten(2, (2, -1)).transpose(1, 2)).transpose(1, 2).flatten(2)
    with torch.no_grad(): assert torch.allclose(attn.proj(getattr(attn, 'norm', torch.nn.Identity())(mixed)), out, atol=1e-5)

def test_tables_of_relative_positions_keep_their_meaning():
    "What depends on the way in patches alone, and evenly, does so on another grid; there and back is the same where nothing is lost"
    enc = encoder('beit_base_patch16_224', img_size=(32, 48))
    key = 'blocks.0.attn.relative_position_bias_table'
    way = torch.cartesian_prod(torch.arange(-3., 4.), torch.arange(-5., 6.))
    state = {**enc.vit.state_dict(), key: torch.cat([way, torch.tensor([[7., 7.], [8., 8.], [9., 9.]])])}
    wide = encoder('beit_base_patch16_224', img_size=(64, 96))
    resample_tables(state, wide.vit, (4, 6))
    wide.vit.load_state_dict(state)
    o = state[key][:-3].view(15, 23, 2)
    assert torch.allclose(o[7, 11], torch.zeros(2), atol=1e-5) and torch.allclose(state[key][-3:, 0], torch.tensor([7., 8., 9.]))
    assert (o[..., 0].diff(dim=0)[2:-2] > 0).all() and (o[..., 1].diff(dim=1)[:, 2:-2] > 0).all()
    assert torch.allclose(o, -o.flip(0, 1), atol=1e-5)

@pytest.mark.parametrize('arch,kw,said', [('vit_pe_lang_large_patch14_448', {}, 'use_post_transformer_norm=True'), ('vit_base_patch16_radio_v3', {}, 'final_norm=True'),
    ('vit_small_patch16_dinov3', dict(patch_drop_rate=.5), 'patch_drop_rate'), ('vit_small_patch16_dinov3', dict(img_size=36), 'not a multiple of the patch'),
    ('beit_base_patch16_224', dict(dynamic_img_size=True), 'dynamic_img_size'), ('vit_small_patch16_dinov3', dict(num_heads=5), 'take 2 or 4')], ids=str)
def test_refused_with_what_to_do(arch, kw, said):
    with pytest.raises(ValueError, match=said): encoder(arch, **kw)

@pytest.mark.parametrize('arch,kw', [('vit_pe_lang_large_patch14_448', dict(use_post_transformer_norm=True)), ('vit_base_patch16_radio_v3', dict(final_norm=True))])
def test_a_norm_can_be_given(arch, kw):
    enc = encoder(arch, **kw)
    again = timm.create_model(arch, num_classes=0, **json.loads(json.dumps(enc.model_args))).eval()
    again.load_state_dict(enc.vit.state_dict())
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad(): assert torch.equal(again.forward_features(x), enc.vit.forward_features(x))

def test_methods_say_before_training_that_they_cannot_follow(dls):
    for arch in CLASSES:
        with pytest.raises(ValueError, match='MAE shows them the visible patches alone'): mae_learner(dls[0], arch, patch_size=8, model_args=tiny(arch), blocks=(1, 2))
        simmim_learner(dls[0], arch, patch_size=8, model_args=tiny(arch), blocks=(1, 2))
    with pytest.raises(ValueError, match='has no positions'): simmim_learner(dls[0], 'vit_tiny_patch16_224', patch_size=8, model_args=dict(tiny('vit'), pos_embed='none'), blocks=(1, 2))
    assert MAE(encoder('eva_giant_patch14_224'), decoder_depth=1)

@pytest.mark.parametrize('arch', CLASSES)
def test_somebodys_checkpoint_with_the_name_of_its_architecture(arch, tmp_path):
    vit = timm.create_model(arch, num_classes=0, img_size=32, patch_size=8, **tiny(arch)).eval()
    torch.save(dict(model={f'backbone.{k}': v for k,v in vit.state_dict().items()}), tmp_path/'theirs.pth')
    convert_checkpoint(tmp_path/'theirs.pth', tmp_path/'m', arch, model_args=dict(tiny(arch), img_size=32, patch_size=8))
    alone,x = timm.create_model(f'local-dir:{tmp_path}/m', pretrained=True).eval(),torch.randn(1, 3, 32, 32)
    with torch.no_grad(): assert torch.equal(alone.forward_features(x), vit.forward_features(x))
    if arch == CLASSES[0]:
        with pytest.raises(ValueError, match='say with arch= what it is'): convert_checkpoint(tmp_path/'theirs.pth', tmp_path/'n')
