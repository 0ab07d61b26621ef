package main

// How a chart is drawn: on white, so that it can be read on a dark page too.

import (
	"fmt"
	"image/color"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// colours of peers: the same in every chart, and told apart by the colour-blind (Okabe and Ito's).
func colourOf(peer string) color.Color {
	switch peer {
	case ours:
		return color.RGBA{0x00, 0x72, 0xB2, 0xFF}
	case oursOff:
		return color.RGBA{0x56, 0xB4, 0xE9, 0xFF}
	case fiberPrefork:
		return color.RGBA{0xD5, 0x5E, 0x00, 0xFF}
	case fiberAlone:
		return color.RGBA{0xE6, 0x9F, 0x00, 0xFF}
	case netHTTP:
		return color.RGBA{0xCC, 0x79, 0xA7, 0xFF}
	case nginx:
		return color.RGBA{0x00, 0x9E, 0x73, 0xFF}
	case fastShared, fastReuse:
		return color.RGBA{0xF0, 0xE4, 0x42, 0xFF}
	case puma:
		return color.RGBA{0x99, 0x99, 0x99, 0xFF}
	default:
		return color.RGBA{0x44, 0x44, 0x44, 0xFF}
	}
}

const (
	chartHeight = 9 * vg.Centimeter
	chartWidth  = 24 * vg.Centimeter
	groupShare  = 0.8 // of the width of a group that its bars fill
)

// draw writes c into a file, and reports whether there was anything to draw.
func (c *bars) draw(title, path string) (bool, error) {
	if len(c.series) == 0 || len(c.groups) == 0 {
		return false, nil
	}
	p := plot.New()
	p.BackgroundColor = color.White
	p.Title.Text = title
	p.Title.Padding = vg.Points(6)
	p.Legend.Top = true
	p.Legend.Padding = vg.Points(2)
	p.Legend.XOffs = vg.Points(-4)
	p.NominalX(c.groups...)
	p.Y.Min = 0

	top := c.line
	perGroup := (chartWidth - 3*vg.Centimeter) / vg.Length(len(c.groups))
	width := perGroup * groupShare / vg.Length(len(c.series))
	for i, peer := range c.series {
		offset := width * vg.Length(float64(i)-float64(len(c.series)-1)/2)
		heights := make(plotter.Values, len(c.groups))
		for g, group := range c.groups {
			if v := c.values[peer][group]; v != nil {
				heights[g] = c.height(v)
				top = max(top, v.most())
			}
		}
		chart, err := plotter.NewBarChart(heights, width*0.92)
		if err != nil {
			return false, err
		}
		chart.Color, chart.LineStyle.Width, chart.Offset = colourOf(peer), 0, offset
		p.Add(chart, &whiskers{chart: c, peer: peer, offset: offset})
		p.Legend.Add(peer, chart)
	}
	if c.line != 0 {
		line := plotter.NewFunction(func(float64) float64 { return c.line })
		line.Color, line.Dashes = color.Gray{0x66}, []vg.Length{vg.Points(4), vg.Points(3)}
		p.Add(line)
	}
	grid := plotter.NewGrid()
	grid.Vertical.Width = 0
	p.Add(grid)
	p.Y.Max = max(top, 1e-3) * (1.08 + 0.09*float64(len(c.series))) // room for the legend
	p.X.Min, p.X.Max = -0.5, float64(len(c.groups))-0.5
	return true, p.Save(chartWidth, chartHeight, path)
}

// whiskers are the lines from the least to the most over the bars of a peer,
// with the height of the bar in digits.
type whiskers struct {
	chart  *bars
	peer   string
	offset vg.Length
}

// Plot implements plot.Plotter.
func (w *whiskers) Plot(canvas draw.Canvas, p *plot.Plot) {
	toX, toY := p.Transforms(&canvas)
	style := draw.LineStyle{Color: color.Gray{0x22}, Width: vg.Points(0.7)}
	label := p.X.Tick.Label
	label.Font.Size = vg.Points(7)
	label.Rotation = 0
	label.XAlign, label.YAlign = draw.XCenter, draw.YBottom
	for g, group := range w.chart.groups {
		v := w.chart.values[w.peer][group]
		if v == nil {
			continue
		}
		x := toX(float64(g)) + w.offset
		canvas.StrokeLine2(style, x, toY(v.least()), x, toY(v.most()))
		canvas.FillText(label, vg.Point{X: x, Y: toY(v.most()) + vg.Points(2)}, digits(w.chart.height(v)))
	}
}

func digits(v float64) string {
	switch {
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.0f", v)
	case v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 1.95:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
