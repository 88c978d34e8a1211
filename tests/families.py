"One architecture of each family of timm's plain transformers, tiny, and what is to be done with it"
import contextlib, io
from pathlib import Path
import timm, torch
from gmml_nb.all import GMMLEncoder, finetune_dls, finetune_learner, gmml_learner, pretrain_dls
from gmml_nb.baselines import MAE, SimMIM
from gmml_nb.vit import places
from gmml_nb.weights import example_images
from gmml_nb.visualise import attention

TINY = dict(embed_dim=32, depth=2, num_heads=2)
FAMILIES = {
    'ViT': 'vit_tiny_patch16_224', 'DeiT': 'deit_tiny_patch16_224', 'DeiT, distilled': 'deit_tiny_distilled_patch16_224', 'DeiT III': 'deit3_small_patch16_224',
    'FlexiViT': 'flexivit_small', 'BEiT-3': 'beit3_base_patch16_224', 'EVA, as ViT': 'eva_large_patch14_196', 'DINOv2': 'vit_small_patch14_dinov2', 'DINOv2, registers': 'vit_small_patch14_reg4_dinov2',
    'TIPSv2': 'vit_base_patch14_reg1_tipsv2', 'CLIP': 'vit_base_patch16_clip_224', 'SigLIP': 'vit_base_patch16_siglip_224', 'SigLIP, mean': 'vit_base_patch16_siglip_gap_224',
    'AIMv2': 'aimv2_large_patch14_224', 'ViT, mean, register': 'vit_dwee_patch16_reg1_gap_256', 'ViT, parallel': 'vit_pwee_patch16_reg1_gap_256', 'ViT, norm after': 'vit_base_patch16_rpn_224',
    'EVA': 'eva_giant_patch14_224', 'EVA-02': 'eva02_tiny_patch14_224', 'EVA-02 CLIP': 'eva02_base_patch16_clip_224', 'DINOv3': 'vit_small_patch16_dinov3',
    'DINOv3 with biases, EUPE': 'vit_tiny_patch16_dinov3_qkvb', 'LingBot': 'vit_small_patch16_lingbot', 'Sapiens2': 'vit_base_patch16_sapiens2', 'PE core': 'vit_pe_core_tiny_patch16_384',
    'PE core, no class token': 'vit_pe_core_gigantic_patch14_448', 'RoPE-ViT': 'vit_small_patch16_rope_224', 'RoPE-ViT, mixed': 'vit_small_patch16_rope_mixed_224',
    'RoPE-ViT, both': 'vit_small_patch16_rope_ape_224', 'ViT, rotary, mean': 'vit_medium_patch16_rope_reg1_gap_256',
    'BEiT': 'beit_base_patch16_224', 'BEiT v2': 'beitv2_base_patch16_224', 'ViT, relative': 'vit_relpos_small_patch16_224', 'ViT, relative, class token': 'vit_relpos_base_patch16_cls_224',
    'ViT, relative, shared': 'vit_srelpos_small_patch16_224'}
REFUSED = {
    'PE spatial': 'vit_pe_spatial_tiny_patch16_512', 'PE lang': 'vit_pe_lang_large_patch14_448', 'RADIO': 'vit_base_patch16_radio_v3', 'InternViT': 'vit_intern300m_patch14_448', 'ViT, hybrid': 'vit_tiny_r_s16_p8_224',
    'MobileCLIP': 'vit_base_mci_224', 'ViTamin': 'vitamin_small_224', 'SAM': 'samvit_base_patch16_224', 'NaFlexViT': 'naflexvit_base_patch16_gap', 'Qwen3': 'qwen3_vit_88m_enc', 'Hiera': 'hiera_tiny_224', 'CaiT': 'cait_xxs24_224',
    'XCiT': 'xcit_nano_12_p16_224', 'VOLO': 'volo_d1_224', 'Swin': 'swin_tiny_patch4_window7_224', 'ConvNeXt': 'convnext_atto'}

def tiny(arch): return dict(TINY, **(dict(num_kv_heads=1) if 'sapiens2' in arch else {}))

def loaders():
    "Twelve images of 32 pixels without labels, the same with, and these 48 pixels high"
    x = example_images(12)
    y = [i % 3 for i in range(12)]
    return pretrain_dls(x, size=32, bs=6, valid_pct=0), *(finetune_dls((x, y), size=s, bs=6, valid_pct=.5) for s in (32, (48, 32)))

def refusal(f):
    "What a call is refused with, or 'works'"
    try: f()
    except ValueError as e: return str(e)
    return 'works'

def try_family(arch, folder, dls):
    "A row of the table: each step is done, and its outcome compared"
    pre,fine,large = dls
    with contextlib.redirect_stdout(io.StringIO()):
        learn = gmml_learner(pre, arch, blocks=(1, 2), patch_size=8, model_args=tiny(arch), crop=(.5, 1.))
        with learn.no_bar(), learn.no_logging(): learn.fit_gmml(1, estimate=False)
        enc,x = learn.model.encoder.eval(),torch.rand(2, 3, 32, 32)
        row = dict(arch=arch, kind=type(enc.vit).__name__, positions=' and '.join(places(enc.vit)), pretrain='works')
        learn.export_encoder(folder)
        with torch.no_grad():
            alone = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
            assert torch.equal(alone.forward_features(x), enc.vit.forward_features(x))
            start = GMMLEncoder(str(folder), (1, 2), pretrained=True, img_size=32).eval()
            assert torch.equal(start(x), enc(x))
        row['load'] = 'works'
        for k,d in dict(finetune=fine, size=large).items():
            ft = finetune_learner(d, folder, layer_decay=.8)
            with ft.no_bar(), ft.no_logging(): ft.fit_finetune(1)
            row[k] = 'works'
        mask = torch.arange(32).view(32, 1).expand(2, 1, 32, 32) < 24
        row['simmim'] = refusal(lambda: SimMIM(enc)(x, mask))
        row['mae'] = refusal(lambda: MAE(enc, decoder_depth=1)(x, mask))
        row['attention'] = refusal(lambda: attention(learn, x, blocks=(1, 2)))
    return row
