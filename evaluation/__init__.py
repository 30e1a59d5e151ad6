"""The quality of results: metrics, baselines, protocols, and numeric parity.

Nothing is imported here, so that `pikfix.evaluation.parity` stays free of torch:

- `parity`: PSNR, largest and worst-tile difference of two arrays (numpy only);
- `metrics`: PSNR, SSIM, colorfulness, CIEDE2000, LPIPS where its weights are present;
- `baselines`: what any model has to beat;
- `pictures`: the protocols' crops, and sibling references;
- `choosers`: how an automatic reference is found;
- `protocol`: what a protocol is; `protocols`: those there are;
- `evaluator`: `evaluate`; `report`: table, JSON and contact sheet.
"""
