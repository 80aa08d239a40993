// The frame that is clicked on: its tools live in the page, so that choosing one asks nobody. `element` and `trigger`
// are given by gr.HTML; what is inside of the element is replaced with every frame, the element itself stays.
const picture = {
  start(element, trigger) {
    element.dataset.tool = 'point';
    let drawn = null;
    const place = (event, panel) => {
      const box = panel.querySelector('img').getBoundingClientRect();
      const share = (at, low, size) => Math.min(1, Math.max(0, (at - low) / size));
      return [share(event.clientX, box.left, box.width) * panel.dataset.width,
              share(event.clientY, box.top, box.height) * panel.dataset.height].map(v => Math.round(v * 10) / 10);
    };
    const draw = () => {
      const layer = drawn.panel.querySelector('.sk-drawing');
      if (!layer) return;
      const [a, b] = [drawn.points[0], drawn.points[drawn.points.length - 1]];
      layer.innerHTML = drawn.tool === 'box'
        ? `<rect x="${Math.min(a[0], b[0])}" y="${Math.min(a[1], b[1])}" width="${Math.abs(a[0] - b[0])}" height="${Math.abs(a[1] - b[1])}"/>`
        : drawn.tool === 'outline' ? `<polygon points="${drawn.points.map(p => p.join(',')).join(' ')}"/>` : '';
    };
    element.addEventListener('click', event => {
      const button = event.target.closest('[data-choose]');
      if (!button) return;
      if (button.dataset.choose === 'undo') trigger('undo', {});
      else element.dataset.tool = button.dataset.choose;
    });
    element.addEventListener('contextmenu', event => {
      if (event.target.closest('.sk-clickable .sk-stage')) event.preventDefault();
    });
    element.addEventListener('pointerdown', event => {
      const stage = event.target.closest('.sk-clickable .sk-stage');
      if (!stage || (event.button !== 0 && event.button !== 2)) return;
      const panel = stage.closest('.sk-panel');
      const tool = event.button === 2 ? 'not' : element.dataset.tool;
      drawn = {panel, tool, points: [place(event, panel)], x: event.clientX, y: event.clientY};
      if (tool === 'box' || tool === 'outline') { stage.setPointerCapture(event.pointerId); event.preventDefault(); }
    });
    element.addEventListener('pointermove', event => {
      if (!drawn || (drawn.tool !== 'box' && drawn.tool !== 'outline')) return;
      if (drawn.points.length < 4000) drawn.points.push(place(event, drawn.panel));
      draw();
    });
    element.addEventListener('pointerup', event => {
      if (!drawn) return;
      const {tool, points, panel, x, y} = drawn;
      const far = Math.hypot(event.clientX - x, event.clientY - y) > 12;
      if (tool === 'box') trigger('box', {corners: [...points[0], ...place(event, panel)]});
      else if (tool === 'outline') trigger('outline', {points: points});
      else if (!far) trigger('point', {x: points[0][0], y: points[0][1], positive: tool === 'point'});
      drawn = null;
    });
    element.addEventListener('pointercancel', () => { drawn = null; });
  },
};

// Tiles and the timeline: a click goes to a frame; a bound that is dragged is told while it moves.
const look = {
  start(element, trigger) {
    let moving = null, told = 0;
    const at = (event, svg) => {
      const time = svg.closest('.sk-time').dataset, box = svg.getBoundingClientRect();
      const across = (event.clientX - box.left) / box.width * time.width, down = (event.clientY - box.top) / box.height * time.height;
      return {
        frame: Math.round((across - time.left) / (time.width - 2 * time.left) * time.frames),
        value: Math.max(0, (time.height - 4 - down) / (time.height - 14) * time.top),
      };
    };
    element.addEventListener('click', event => {
      const tile = event.target.closest('.sk-tile');
      if (tile) trigger('go', {frame: Number(tile.dataset.frame)});
    });
    element.addEventListener('pointerdown', event => {
      const svg = event.target.closest('.sk-time svg');
      if (!svg) return;
      const bound = event.target.closest('.sk-bound');
      if (bound && bound.dataset.choice) { moving = {svg, choice: bound.dataset.choice, lines: bound.querySelectorAll('path')}; event.preventDefault(); }
      else trigger('go', {frame: at(event, svg).frame});
    });
    window.addEventListener('pointermove', event => {
      if (!moving) return;
      event.preventDefault();
      const now = at(event, moving.svg), time = moving.svg.closest('.sk-time').dataset;
      const y = time.height - 4 - (time.height - 14) * Math.min(now.value / time.top, 1);
      moving.value = now.value;
      moving.lines.forEach(line => line.setAttribute('d', `M${time.left} ${y}H${time.width - time.left}`));
    });
    window.addEventListener('pointerup', () => {
      if (moving && moving.value !== undefined) trigger('bound', {choice: moving.choice, value: Math.round(moving.value * 1000) / 1000});
      moving = null;
    });
  },
};
